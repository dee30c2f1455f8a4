"""Three guards in this process, enrolled with each other, with one approved plan. Training runs in real worker processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import template
from fl_privacy.guard.blobs import NOBODY
from fl_privacy.guard.corpus import add_corpus
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.learning.models import ModelBundle
from fl_privacy.messages import Signed, sign
from fl_privacy.plan import TrainingPlan
from fl_privacy.row_files import PLAIN, Fields
from tests.builders import OWNERS, enrol_all, order_for, text_rows, texts, tiny_bundle, tiny_plan, write_domain

if TYPE_CHECKING:
    from tests.guard.protocol import Attempt, Worker

ROWS = 200


@dataclass
class Strongrooms:
    """Guards by owner, the scientist's key, the approved plan and its model."""

    guards: dict[str, Guard]
    key: Ed25519PrivateKey
    plan: TrainingPlan
    bundle: ModelBundle

    @property
    def code(self) -> str:
        """The submitted code."""
        return template.render(sign(self.plan, self.key))

    def order(self, **changes: Any) -> Signed:
        """A correct order, but for ``changes``."""
        home = next(iter(self.guards.values())).home
        return order_for(self.plan, self.key, home.registry, ROWS, home.secret_key("bfv"), **changes)

    def upload(self, blob: bytes, *owners: str) -> str:
        """Put a blob into guards' inboxes."""
        for owner in owners or self.guards:
            upload(self.guards[owner], blob)
        return hashlib.sha256(blob).hexdigest()


def upload(guard: Guard, blob: bytes, name: str | None = None, uploader: str = NOBODY) -> None:
    """Send a blob as the relay does."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(blob), 1000):
            yield blob[start : start + 1000]

    asyncio.run(guard.blobs.receive(name or hashlib.sha256(blob).hexdigest(), chunks(), uploader))


def finished(guard: Guard, digest: str, seconds: float = 120.0) -> dict[str, Any]:
    """Wait until an order is no longer in training."""
    deadline = time.monotonic() + seconds
    while (state := guard.rounds.state(digest))["state"] == "training":
        if time.monotonic() > deadline:
            raise TimeoutError(state)
        time.sleep(0.05)
    return state


def make_guard(folder: Path, owner: str, rows: int = ROWS, epsilon: float = 8.0, labels: Sequence[str] = ()) -> Guard:
    """A guard with a corpus, labelled where ``labels`` are given, and no companions yet."""
    home = GuardHome.create(folder / owner, Domain.read(write_domain(folder, owner, epsilon)))
    file = folder / f"{owner}.jsonl"
    lines = [{"text": text} for text in texts(rows, seed=sum(map(ord, owner)))]
    mock_rows, fields = text_rows(5, seed=99), PLAIN
    if labels:
        lines = [line | {"label": labels[number % len(labels)]} for number, line in enumerate(lines)]
        mock_rows, fields = [row.model_copy(update={"label": labels[0]}) for row in mock_rows], Fields(label="label")
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    add_corpus(home, file, mock_rows, fields)
    return Guard(home)


def make_strongrooms(
    folder: Path, epsilon: float = 8.0, owners: tuple[str, ...] = OWNERS, bundle: ModelBundle | None = None, **changes: Any
) -> Strongrooms:
    """Enrolled guards that hold the shared key and have approved one plan; ``changes`` are the plan's."""
    bundle = bundle or tiny_bundle()
    guards = {owner: make_guard(folder, owner, epsilon=epsilon, labels=bundle.spec.labels) for owner in owners}
    enrol_all({owner: guard.enrolment for owner, guard in guards.items()})
    rooms = Strongrooms(guards, Ed25519PrivateKey.generate(), tiny_plan(bundle, owners=owners, **changes), bundle)
    for guard in guards.values():
        guard.approve(rooms.code)
    rooms.upload(bundle.weights)
    rooms.upload(bundle.vocabulary)
    return rooms


@pytest.fixture(scope="module")
def untouched_rooms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strongrooms]:
    """Strong rooms for tests in which every order is refused."""
    made = make_strongrooms(tmp_path_factory.mktemp("rooms"))
    yield made
    for guard in made.guards.values():
        guard.close()


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Strongrooms]:
    """Fresh strong rooms for one test."""
    made = make_strongrooms(tmp_path)
    yield made
    for guard in made.guards.values():
        guard.close()


@pytest.fixture
def sealed(rooms: Strongrooms, worker: Worker, tmp_path: Path) -> Attempt:
    """Round 0, attempt 0, with every owner's update sealed."""
    from tests.guard.protocol import attempt  # which imports from here

    return attempt(rooms, tmp_path / "scientist")
