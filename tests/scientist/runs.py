"""A scientist's run against guards in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fl_privacy import template
from fl_privacy.encryption.keys import key_name
from fl_privacy.learning.metrics import Counts, TokenCounts
from fl_privacy.messages import sign
from fl_privacy.parameters import Parameters
from fl_privacy.scientist.history import Watcher
from fl_privacy.scientist.orders import Orders
from fl_privacy.scientist.training_run import TrainingRun
from tests.builders import text_rows
from tests.guard.conftest import ROWS, Strongrooms, make_strongrooms
from tests.guard_desk import GuardDesk

FOUR = ("bank", "clinic", "school", "shop")


@contextmanager
def rooms_of_four(folder: Path, **changes: Any) -> Iterator[Strongrooms]:
    """Four owners' guards that have approved a plan."""
    made = make_strongrooms(folder, owners=FOUR, **changes)
    yield made
    for guard in made.guards.values():
        guard.close()


def validation(model: Parameters, round_index: int = 0) -> Counts:
    """Stands in for an evaluation on the scientist's own rows."""
    return TokenCounts([30, 1, 2, 10])


def a_run(
    rooms: Strongrooms,
    desks: Mapping[str, GuardDesk],
    watcher: Watcher,
    evaluate: Callable[[Parameters, int], Counts] = validation,
    **options: Any,
) -> TrainingRun:
    """The run of the rooms' plan."""
    home = rooms.guards["bank"].home
    orders = Orders(
        plan=rooms.plan,
        function="function",
        code=template.code_digest(rooms.code),
        registry=home.registry,
        key=key_name(home.secret_key("bfv")),
        sizes=dict.fromkeys(rooms.plan.owners, ROWS),
        sign=partial(sign, key=rooms.key),
    )
    return TrainingRun(
        plan=rooms.plan,
        bundle=rooms.bundle,
        orders=orders,
        desks=desks,  # type: ignore[arg-type]
        evaluate=evaluate,
        watcher=watcher,
        timeout=60.0,
        validation=text_rows(3),
        **options,
    )
