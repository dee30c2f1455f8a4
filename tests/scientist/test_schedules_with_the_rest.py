"""Layers that change from round to round, together with what else a plan may ask for: strategies, compression, policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import template
from fl_privacy.errors import NotApproved
from fl_privacy.guard.worker import Job, _correction
from fl_privacy.learning.local_start import sent_specs
from fl_privacy.learning.models import ModelBundle
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.messages import sign
from fl_privacy.parameters import Parameters, flatten, from_bytes
from fl_privacy.round_order import RoundOrder
from fl_privacy.scientist.history import Watcher
from fl_privacy.scientist.run_folder import RunFolder
from fl_privacy.scientist.wire import RESIDUAL
from fl_privacy.strategies.base import ServerState
from fl_privacy.strategies.scaffold import CONTROL
from tests.builders import OWNERS, tiny_plan
from tests.guard.conftest import Strongrooms, make_guard
from tests.guard.protocol import Worker
from tests.guard.test_policy import with_policy
from tests.guard_desk import GuardDesk
from tests.scientist.runs import a_run
from tests.scientist.test_layers_by_round import LABELS, LAYER, a_bundle, ordered, strongrooms

_KEY = Ed25519PrivateKey.generate()
SCAFFOLD: dict[str, Any] = {"strategy": "scaffold", "optimizer": "sgd", "learning_rate": 0.1, "update_bits": 12}
TO_CLASSIFY: dict[str, Any] = {"task": "classification", "layer_schedule": "fedbt"}


@dataclass
class Drifting(Worker):
    """A worker whose owners move by what the order corrects, and each by something of its own."""

    corrections: dict[tuple[int, str], Parameters] = field(default_factory=dict)

    def run(self, job: Job, on_step: Callable[[int, int], None], started: Callable[[int], None]) -> None:
        self.jobs.append(job)
        own, correction = 0.002 * (1 + OWNERS.index(job.owner)), _correction(job)
        self.corrections[job.round, job.owner] = correction or {}
        draw = np.random.default_rng(job.round)  # the same for all owners
        update = {spec.name: own * draw.uniform(-1, 1, spec.shape).astype("<f4") for spec in job.tensors}
        rates = sum(job.plan.rates(job.round))
        flat = flatten(update, job.tensors) - np.float32(rates) * (flatten(correction, job.tensors) if correction else 0)
        flat.astype("<f4").tofile(job.update)


@pytest.fixture
def drifting(monkeypatch: pytest.MonkeyPatch) -> Drifting:
    stand_in = Drifting()
    monkeypatch.setattr("fl_privacy.guard.worker.run", stand_in.run)
    return stand_in


def state_after(rooms: Strongrooms, out: Path) -> ServerState:
    """The scientist's state after a whole run."""
    a_run(rooms, {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}, Watcher()).train(out)
    folder = RunFolder(out)
    return folder.state(folder.position)


def own_variates(rooms: Strongrooms, out: Path, round_index: int) -> list[Parameters]:
    digest = ordered(out, round_index).digest()
    folders = [guard.rounds.orders.folder(digest) for guard in rooms.guards.values()]
    return [from_bytes(folder.control.read_bytes()) for folder in folders]


def test_scaffolds_variate_is_the_mean_of_the_owners_for_every_tensor_though_rounds_train_other_layers(
    tmp_path: Path, drifting: Drifting
) -> None:
    """SC3 through guards, with stage 2 of FedBT: layers 3, 2-3, 1-3, 3. What a round does not train waits bit for bit."""
    bundle, out = a_bundle(4, head="classification", labels=LABELS), tmp_path / "out"
    with strongrooms(tmp_path, bundle, **TO_CLASSIFY, **SCAFFOLD, rounds=4, layer_cycle=3) as rooms:
        variate, before, own = state_after(rooms, out).slots[CONTROL], *(own_variates(rooms, out, index) for index in (2, 3))
    assert all(variate.keys() == kept.keys() == {spec.name for spec in sent_specs(rooms.plan, 2)} for kept in own)
    for name, array in variate.items():
        mean = np.mean([kept[name].astype(np.float64) for kept in own], axis=0)
        assert np.abs(array - mean).max() < 1e-4 * np.abs(mean).max()
    waiting = {name for name in variate if name.startswith((LAYER + "1.", LAYER + "2."))}
    changed = {name for name in variate if not np.array_equal(before[0][name], own[0][name])}
    assert changed == variate.keys() - waiting == {spec.name for spec in sent_specs(rooms.plan, 3)}
    corrected = [set(drifting.corrections[index, "bank"]) for index in range(4)]
    assert corrected == [set(), *({spec.name for spec in sent_specs(rooms.plan, index)} for index in (1, 2, 3))]


def test_a_model_that_grows_starts_all_variates_anew_and_owners_accept_it(tmp_path: Path, drifting: Drifting) -> None:
    """Its way down in steps of 8 bits besides."""
    fields = {"layer_schedule": "progfed", "growth_stages": 2, "rounds": 4, "downlink_bits": 8}
    with strongrooms(tmp_path, a_bundle(4), **SCAFFOLD, **fields) as rooms:
        state = state_after(rooms, tmp_path / "out")
        controls = [ordered(tmp_path / "out", index).control for index in range(4)]
    assert [control and control.since for control in controls] == [0, 1, 1, 1]
    assert [control and control.blob is None for control in controls] == [True, True, False, False]
    assert not drifting.corrections[1, "bank"] and drifting.corrections[2, "bank"]
    assert state.since == 1 and state.slots[CONTROL].keys() == state.model.keys()


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi"])
def test_a_model_that_grows_starts_with_empty_moments(strategy: str, tmp_path: Path) -> None:
    with strongrooms(tmp_path, a_bundle(4), strategy=strategy, layer_schedule="progfed", growth_stages=2, rounds=8) as rooms:
        run = a_run(rooms, {}, Watcher())
        first = from_bytes(rooms.bundle.weights)
        late = {name: array + np.float32(1) for name, array in first.items()}
        before = {index: ServerState(index, late, {"momentum": dict(first)}) for index in (1, 2, 3)}
        after = {index: run._grown(state) for index, state in before.items()}
    assert after[1] is before[1] and after[3] is before[3]
    assert (after[2].slots, after[2].since, after[2].round) == ({}, 2, 2)


def test_what_8_bits_lost_of_a_head_that_is_thrown_away_is_thrown_away_with_it(tmp_path: Path) -> None:
    """Else the new head would be given the old one's remainder."""
    fields: dict[str, Any] = {"layer_schedule": "progfed", "growth_stages": 2, "rounds": 8, "downlink_bits": 8}
    with strongrooms(tmp_path, a_bundle(4), **fields) as rooms:
        run, first = a_run(rooms, {}, Watcher()), from_bytes(rooms.bundle.weights)
        after = run._grown(ServerState(2, first, wire={RESIDUAL: dict(first)}))
    heads = {name for name in first if name.startswith("cls.")}
    assert heads and after.wire[RESIDUAL].keys() == first.keys() - heads


PARTS: list[dict[str, Any]] = [
    {"update_ranges": "adaptive", "sent": "random", "sent_share": 0.5, "downlink_bits": 8},
    {"rotation": True, "downlink_bits": 8},
]


@pytest.mark.parametrize("changes", PARTS)
def test_schedules_go_with_compression(changes: dict[str, Any], tmp_path: Path, worker: Worker) -> None:
    """Each round's map is of the tensors that the round trains."""
    bundle = a_bundle(4, head="classification", labels=LABELS)
    with strongrooms(tmp_path, bundle, **TO_CLASSIFY, **changes, rounds=3, layer_cycle=2) as rooms:
        state = state_after(rooms, tmp_path / "out")
        sizes = [ordered(tmp_path / "out", index).coordinates for index in range(3)]
    assert sizes[0] == sizes[2] < sizes[1]
    first = from_bytes(bundle.weights)
    moved = {name for name in first if not np.array_equal(first[name], state.model[name])}
    assert moved == {spec.name for spec in order_specs(rooms.plan, "train", 1)}


def test_nothing_of_an_owners_own_leaves_the_orders_bytes_as_they_were(tmp_path: Path) -> None:
    """SB1: an order of a plan without schedule, own layers or compression says nothing of them."""
    bundle = a_bundle(2, head="classification", labels=LABELS)
    with strongrooms(tmp_path, bundle, task="classification", local_layers="") as rooms:
        order = RoundOrder.parse(rooms.order().body)
    assert {"control", "compression"}.isdisjoint(order.model_dump(mode="json"))
    assert order.tensors == sent_specs(rooms.plan, 0)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    guard = make_guard(tmp_path_factory.mktemp("bank"), "bank", labels=LABELS)
    yield guard
    guard.close()


DEEP, BOTH = a_bundle(4), a_bundle(4, head="classification", labels=LABELS, language_head=True)
TWO_STAGES: dict[str, Any] = {"layer_schedule": "fedbt", "task": "classification", "rounds": 3, "pretraining_rounds": 1}
GROWING: dict[str, Any] = {"layer_schedule": "progfed", "growth_stages": 2, "rounds": 8, "warmup_rounds": 1}


@pytest.mark.parametrize(
    ("bundle", "fields", "lines", "told"),
    [
        (BOTH, TWO_STAGES, {"tasks": ("classification",)}, r"tasks = \['classification'\]: the plan's task is 'mlm'"),
        (BOTH, TWO_STAGES, {"tasks": ("mlm",)}, r"tasks = \['mlm'\]: the plan's task is 'classification'"),
        (BOTH, TWO_STAGES, {"trainable": ("all", "head")}, "the plan trains 'layers:"),
        (DEEP, {"layer_schedule": "fedbt"}, {"trainable": ("all",)}, r"trainable = \['all'\]: the plan trains 'layers:"),
        (DEEP, GROWING, {"trainable": ("layers",)}, r"trainable = \['layers'\]: the plan trains 'all'"),
        (DEEP, GROWING, {"trainable": ("all",)}, r"trainable = \['all'\]: the plan trains 'layers:2-3'"),
    ],
)
def test_a_plan_is_refused_for_what_any_of_its_rounds_trains(
    bank: Any, bundle: ModelBundle, fields: dict[str, Any], lines: dict[str, Any], told: str
) -> None:
    former, code = bank.home.domain, template.render(sign(tiny_plan(bundle, **fields), _KEY))
    with_policy(bank, **lines)
    try:
        with pytest.raises(NotApproved, match=told):
            bank.approve(code)
    finally:
        bank.home.domain = former
    assert bank.review(code).refused_by_policy == ()


def test_fedbt_is_not_held_to_train_all_layers_which_no_round_of_it_does(bank: Any) -> None:
    former = bank.home.domain
    with_policy(bank, trainable=("layers",))
    report = bank.review(template.render(sign(tiny_plan(DEEP, layer_schedule="fedbt"), _KEY)))
    bank.home.domain = former
    assert report.refused_by_policy == ()
