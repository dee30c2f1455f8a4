"""SCAFFOLD through real guards and secure sums; which control variates an owner accepts, and that none is ever made up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_privacy.encryption.packing import plan_encoding
from fl_privacy.errors import ControlMismatch, OrderFailed, OrderRefused
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.orders import OrderFolder
from fl_privacy.guard.worker import Job, _correction
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.messages import OpenedSum, Signed
from fl_privacy.parameters import Parameters, Vector, count, flatten, from_bytes, to_bytes, unflatten
from fl_privacy.round_order import Control, RoundOrder
from fl_privacy.strategies.base import ServerState
from fl_privacy.strategies.registry import strategy_of
from tests.guard.conftest import ROWS, Strongrooms, finished, make_strongrooms
from tests.guard.protocol import Attempt, Worker, collected, values_of

OWNERS = ("bank", "clinic", "firm", "school")
PLAN = {
    "strategy": "scaffold",
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "rounds": 6,
    "retries": 3,
    "trainable": "head",
    "update_bits": 12,
    "warmup_steps": 3,
    "local_steps": 4,
}


@dataclass
class QuadraticOwners(Worker):
    """A training worker whose owners have F_k(w) = a_k / 2 |w - b_k|^2; the correction is read as the real worker reads it."""

    updates: dict[str, Vector] = field(default_factory=dict)  # an owner's last

    def run(self, job: Job, on_step: Callable[[int, int], None], started: Callable[[int], None]) -> None:
        self.jobs.append(job)
        self.fail(job)
        owner = next(owner for owner in OWNERS if f"/{owner}/" in job.update)
        correction = _correction(job)
        given = None if correction is None else flatten(correction, job.tensors)
        place = flatten(from_bytes(Path(job.weights).read_bytes()), job.tensors)
        self.updates[owner] = local_update(job, owner, place, given)
        self.updates[owner].tofile(job.update)


def local_update(job: Any, owner: str, first: Vector, correction: Vector | None) -> Vector:
    """Four steps of gradient descent on the owner's quadratic."""
    curvature, centre = 0.05 * (1 + OWNERS.index(owner)), first.mean() + 0.1 * (OWNERS.index(owner) - 1)
    place = first.copy()
    for rate in job.plan.rates(job.round):
        place -= np.float32(rate) * (np.float32(curvature) * (place - centre) + (0 if correction is None else correction))
    return place - first


@pytest.fixture
def quadratic(monkeypatch: pytest.MonkeyPatch) -> QuadraticOwners:
    stand_in = QuadraticOwners()
    monkeypatch.setattr("fl_privacy.guard.worker.run", stand_in.run)
    return stand_in


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Strongrooms]:
    rooms = make_strongrooms(tmp_path, owners=OWNERS, **PLAN)
    yield rooms
    for guard in rooms.guards.values():
        guard.close()


@dataclass
class Scientist:
    """Makes the orders of a run and applies its sums."""

    rooms: Strongrooms
    folder: Path
    last: dict[str, str] = field(default_factory=dict)  # each owner's last order whose sum was applied

    def __post_init__(self) -> None:
        self.strategy = strategy_of(self.rooms.plan)
        self.state = self.strategy.init(from_bytes(self.rooms.bundle.weights))

    def order(self, cohort: Sequence[str] = OWNERS, attempt: int = 0, **control: Any) -> Signed:
        blob, variate = to_bytes(self.state.model), self.strategy.configure(self.state)
        model = self.rooms.upload(self.rooms.bundle.weights if self.state.round == 0 else blob)
        fields: dict[str, Any] = {
            "blob": self.rooms.upload(to_bytes(variate)) if variate else None,
            "since": self.state.since,
            "after": tuple(self.last.get(owner) for owner in cohort),
        }
        weights = (ROWS,) * len(cohort)
        return self.rooms.order(
            round=self.state.round,
            attempt=attempt,
            cohort=tuple(cohort),
            weights=weights,
            encoding=plan_encoding(self.rooms.plan, weights),
            model=model,
            control=Control(**(fields | control)),
        )

    def seal(self, cohort: Sequence[str] = OWNERS, attempt: int = 0) -> Attempt:
        return collected(self.rooms, self.order(cohort, attempt), self.folder / f"{self.state.round}-{attempt}")

    def round(self, cohort: Sequence[str] = OWNERS, attempt: int = 0) -> Attempt:
        made = self.seal(cohort, attempt)
        self.apply(made)
        return made

    def apply(self, made: Attempt) -> None:
        request, guard = made.opening(), self.rooms.guards[made.order.cohort[0]]
        opened = OpenedSum.parse(guard.closing.open(request).body)
        mean = unflatten(values_of(guard, opened.values).copy(), made.order.tensors)
        self.state = self.strategy.apply(self.state, mean, len(made.order.cohort) / len(OWNERS))
        self.last |= dict.fromkeys(made.order.cohort, made.order.digest())

    @property
    def variate(self) -> Vector:
        """c, flat."""
        specs = order_specs(self.rooms.plan, "train")
        variate: Parameters = self.strategy.configure(self.state)
        return flatten(variate, specs) if variate else np.zeros(count(specs), np.float32)

    def own(self, owner: str) -> Vector:
        """c_k, as the owner's guard keeps it."""
        if owner not in self.last:
            return np.zeros_like(self.variate)
        kept = from_bytes(folder_of(self.rooms.guards[owner], self.last[owner]).control.read_bytes())
        return flatten(kept, order_specs(self.rooms.plan, "train"))


@pytest.fixture
def scientist(four: Strongrooms, quadratic: QuadraticOwners, tmp_path: Path) -> Scientist:
    return Scientist(four, tmp_path / "scientist")


def folder_of(guard: Guard, digest: str) -> OrderFolder:
    return guard.rounds.orders.folder(digest)


COHORTS = [OWNERS, OWNERS[:3], OWNERS, OWNERS[1:]]


def test_rounds_through_secure_sums_equal_scaffold_computed_in_the_open(
    scientist: Scientist, quadratic: QuadraticOwners
) -> None:
    """Model and variates, with owners missing in some rounds; the sums round each update to steps, hence the tolerance."""
    plan, specs = scientist.rooms.plan, order_specs(scientist.rooms.plan, "train")
    place = flatten(scientist.state.model, specs).astype(np.float64)
    own = {owner: np.zeros_like(place) for owner in OWNERS}
    server = np.zeros_like(place)
    for number, cohort in enumerate(COHORTS):
        scientist.round(cohort)
        job = next(job for job in quadratic.jobs if job.round == number)
        updates = {
            owner: local_update(job, owner, place.astype(np.float32), (server - own[owner]).astype(np.float32))
            for owner in cohort
        }
        before = server.copy()
        for owner, update in updates.items():
            difference = -plan.scaffold_damping * (before + update / sum(plan.rates(number)))
            own[owner] = own[owner] + difference
            server = server + difference / len(OWNERS)
        place = place + sum(update.astype(np.float64) for update in updates.values()) / len(cohort)
        step = plan.update_range / 2047
        assert flatten(scientist.state.model, specs) == pytest.approx(place, abs=(number + 1) * step)
        slack = (number + 2) * step / sum(plan.rates(number))
        assert scientist.variate == pytest.approx(server, abs=slack)
        assert all(scientist.own(owner) == pytest.approx(own[owner], abs=slack) for owner in OWNERS)
    assert np.abs(server).max() > 10 * slack, "or the comparison shows nothing"


def test_the_servers_variate_is_the_mean_of_the_owners_though_sums_are_rounded(scientist: Scientist) -> None:
    """SC3, far below a step of the rounding: an owner's variate is made of what the sum has of its update."""
    for cohort in COHORTS:
        scientist.round(cohort)
        mean = np.mean([scientist.own(owner).astype(np.float64) for owner in OWNERS], axis=0)
        step = scientist.rooms.plan.update_range / 2047 / sum(scientist.rooms.plan.rates(0))
        off = np.abs(scientist.variate - mean)
        assert np.median(off) < 1e-5 * np.abs(mean).max() and (off > 0.01 * step).mean() < 0.01


def test_an_owner_does_not_use_a_variate_of_a_sum_that_was_never_applied(
    scientist: Scientist, quadratic: QuadraticOwners
) -> None:
    """Round 1 is sealed, even opened, but the scientist lost the sum: round 1 again, from the variates of round 0."""
    first = scientist.round()
    before = {owner: scientist.own(owner) for owner in OWNERS}
    scientist.seal().opening()  # closed: the update cannot be taken over, and is trained again
    quadratic.jobs.clear()
    scientist.round(attempt=1)
    assert {Path(job.own_control).parent.name for job in quadratic.jobs} == {first.order.digest()}
    assert len(quadratic.jobs) == 4
    for owner in OWNERS:
        assert not np.array_equal(scientist.own(owner), before[owner])
    scientist.round()
    assert scientist.variate == pytest.approx(np.mean([scientist.own(owner) for owner in OWNERS], axis=0), abs=1e-4)


def test_an_update_is_taken_over_with_its_variates_by_a_smaller_cohort(
    scientist: Scientist, quadratic: QuadraticOwners
) -> None:
    """Rounded anew for the other weights; nothing is trained again."""
    scientist.round()
    scientist.seal()
    trained = len(quadratic.jobs)
    scientist.round(OWNERS[:3], attempt=1)
    assert len(quadratic.jobs) == trained
    scientist.round()
    assert scientist.variate == pytest.approx(np.mean([scientist.own(owner) for owner in OWNERS], axis=0), abs=1e-4)


def test_only_the_variates_that_a_later_order_may_name_are_kept(scientist: Scientist) -> None:
    for _ in range(3):
        scientist.round()
    guard = scientist.rooms.guards["bank"]
    kept = [path.parent.name for path in (guard.home.folder / "rounds").rglob("control.safetensors")]
    assert scientist.last["bank"] in kept and len(kept) == 2
    mode = folder_of(guard, scientist.last["bank"]).control.stat().st_mode
    assert mode & 0o777 == 0o600
    guard.rounds.withdraw(scientist.rooms.plan.digest(), "done")
    assert list((guard.home.folder / "rounds").rglob("control.safetensors")) == []


def test_a_guard_that_was_restarted_goes_on_with_its_variate(scientist: Scientist) -> None:
    scientist.round()
    guards = scientist.rooms.guards
    before = scientist.own("bank")
    guards["bank"].close()
    guards["bank"] = Guard(GuardHome(guards["bank"].home.folder))
    assert np.array_equal(scientist.own("bank"), before)
    scientist.round()


def test_an_owner_that_lost_its_variate_refuses_until_all_start_anew(scientist: Scientist, quadratic: QuadraticOwners) -> None:
    scientist.round()
    scientist.round(OWNERS[:3])
    bank = scientist.rooms.guards["bank"]
    folder_of(bank, scientist.last["bank"]).control.unlink()
    spent = bank.home.ledger.statement()
    with pytest.raises(ControlMismatch, match="bank has lost its control variate.*start all control variates anew"):
        bank.rounds.place(scientist.order())
    assert bank.home.ledger.statement() == spent
    scientist.state, scientist.last = scientist.strategy.anew(scientist.state), {}  # type: ignore[attr-defined]
    quadratic.jobs.clear()
    scientist.round(OWNERS[:3])
    assert all(job.control == job.own_control == "" for job in quadratic.jobs)
    scientist.round()  # the school was not there when it began anew
    assert scientist.variate == pytest.approx(np.mean([scientist.own(owner) for owner in OWNERS], axis=0), abs=1e-4)


def test_all_start_anew_in_the_middle_of_a_round(scientist: Scientist) -> None:
    """Some owners have sealed the round's first attempt when one of them finds its variate lost."""
    scientist.round()
    first = scientist.order()
    for owner in OWNERS[:2]:
        scientist.rooms.guards[owner].rounds.place(first)
        finished(scientist.rooms.guards[owner], RoundOrder.parse(first.body).digest())
    folder_of(scientist.rooms.guards["firm"], scientist.last["firm"]).control.unlink()
    with pytest.raises(ControlMismatch):
        scientist.rooms.guards["firm"].rounds.place(first)
    scientist.state, scientist.last = scientist.strategy.anew(scientist.state), {}  # type: ignore[attr-defined]
    scientist.round(attempt=1)
    assert scientist.variate == pytest.approx(np.mean([scientist.own(owner) for owner in OWNERS], axis=0), abs=1e-4)


def refused(scientist: Scientist, told: str, attempt: int = 0, **control: Any) -> None:
    """The bank refuses an order, at no cost."""
    bank = scientist.rooms.guards["bank"]
    before = bank.home.ledger.statement()
    with pytest.raises(OrderRefused, match=told):
        bank.rounds.place(scientist.order(attempt=attempt, **control))
    assert bank.home.ledger.statement() == before


def test_an_order_may_name_nothing_but_what_comes_next(scientist: Scientist) -> None:
    refused(scientist, "bank has trained in no order of this plan", after=("ab" * 32,) * 4, blob=a_blob(scientist))
    first = scientist.round()
    refused(scientist, "is not the one after bank's latest order", after=("ab" * 32,) * 4)
    scientist.round()
    refused(scientist, "is not the one after bank's latest order", after=(None,) * 4)
    scientist.round()
    digest = first.order.digest()
    refused(scientist, "is not the one after bank's latest order", after=(digest,) * 4)
    refused(scientist, "contradicts round 2", since=1, after=(None,) * 4)
    refused(scientist, "contradicts round 2", since=3)


def test_an_order_may_not_name_one_that_was_never_sealed(scientist: Scientist, quadratic: QuadraticOwners) -> None:
    """Even if its variate was written: the guard may have died between that and the receipt."""

    def fail(job: Job) -> None:
        raise OrderFailed("for the test")

    scientist.round()
    quadratic.fail = fail
    bank, failed = scientist.rooms.guards["bank"], scientist.order()
    digest = RoundOrder.parse(failed.body).digest()
    bank.rounds.place(failed)
    assert finished(bank, digest)["state"] == "failed"
    folder_of(bank, digest).control.write_bytes(folder_of(bank, scientist.last["bank"]).control.read_bytes())
    refused(scientist, "is not the one after bank's latest order", after=(digest,) * 4, attempt=1)


def test_an_order_cannot_count_a_sum_for_a_part_of_its_cohort(scientist: Scientist) -> None:
    """Then the next sum would hold one owner's earlier update, and not the others'."""
    scientist.round()
    earlier = dict(scientist.last)
    scientist.round()
    mixed = (scientist.last["bank"], *(earlier[owner] for owner in OWNERS[1:]))
    refused(scientist, "for a part of its cohort only", after=mixed)
    refused(scientist, "for a part of its cohort only", after=(earlier["bank"], *[scientist.last["clinic"]] * 3))


def a_blob(scientist: Scientist, **tensors: Vector) -> str:
    zeros = {spec.name: np.zeros(spec.shape, np.float32) for spec in order_specs(scientist.rooms.plan, "train")}
    return scientist.rooms.upload(to_bytes(zeros | tensors))


def test_a_malformed_announcement_is_refused(scientist: Scientist) -> None:
    refused(scientist, "do not fit its cohort and round", after=(None,) * 3)
    refused(scientist, "do not fit its cohort and round", since=1)
    refused(scientist, "that it says is zero", after=("ab" * 32,) * 4)
    refused(scientist, "has not been uploaded", blob="ab" * 32)
    odd = {order_specs(scientist.rooms.plan, "train")[0].name: np.zeros((3, 3, 3), np.float32)}
    refused(scientist, "does not fit the order's tensors", blob=a_blob(scientist, **odd))
    refused(scientist, "does not fit the order's tensors", blob=scientist.rooms.upload(b"not safetensors"))


def test_control_variates_are_in_scaffolds_trainings_only(scientist: Scientist, tmp_path: Path, worker: Worker) -> None:
    bank = scientist.rooms.guards["bank"]
    plain = tmp_path / "plain"
    plain.mkdir()
    without = scientist.rooms.order()
    with pytest.raises(OrderRefused, match="belong to orders to train by SCAFFOLD"):
        bank.rounds.place(without)
    rooms = make_strongrooms(plain, trainable="head")
    with pytest.raises(OrderRefused, match="belong to orders to train by SCAFFOLD"):
        rooms.guards["bank"].rounds.place(rooms.order(control=Control(blob=None, since=0, after=(None,) * 3)))
    for guard in rooms.guards.values():
        guard.close()


@pytest.mark.slow
def test_real_workers_train_with_the_correction_and_never_send_their_own(tmp_path: Path) -> None:
    """Two rounds of DP-SGD in worker processes. The server's variate is made very large, so that the second update shows it."""
    rooms = make_strongrooms(tmp_path, owners=OWNERS[:3], **{**PLAN, "weight_decay": 0.0, "update_range": 1.0})
    scientist = Scientist(rooms, tmp_path / "scientist")
    first = collected(rooms, scientist.order(OWNERS[:3]), tmp_path / "0")
    scientist.apply(first)
    specs = order_specs(rooms.plan, "train")
    variate = {spec.name: np.full(spec.shape, 1.5, np.float32) for spec in specs}
    scientist.state = ServerState(1, scientist.state.model, {"control": variate}, 0)
    second = collected(rooms, scientist.order(OWNERS[:3]), tmp_path / "1")
    for owner, guard in rooms.guards.items():
        update = np.fromfile(folder_of(guard, second.order.digest()).update, "<f4")
        assert update.mean() == pytest.approx(-1.5 * sum(rooms.plan.rates(1)), rel=0.05)
        private = folder_of(guard, first.order.digest()).control.read_bytes()[-64:]
        leaving = [path.read_bytes() for path in (guard.home.folder / "outbox").iterdir()]
        assert all(private not in blob for blob in leaving), owner
    for guard in rooms.guards.values():
        guard.close()


def test_an_order_without_control_variates_has_the_bytes_that_it_always_had() -> None:
    """Or receipts, ledgers and evidence of orders from before there were any would no longer verify."""
    order = RoundOrder(
        plan="0" * 64,
        code="1" * 64,
        registry="2" * 64,
        key="3" * 64,
        round=1,
        attempt=0,
        model="4" * 64,
        tensors=({"name": "w", "shape": (2,)},),  # type: ignore[arg-type]
        cohort=("a", "b", "c"),
        weights=(1, 2, 3),
        encoding={"scheme": "ckks", "value_range": 0.5},  # type: ignore[arg-type]
    )
    assert "control" not in json.loads(order.canonical())
    assert order.digest() == "23212321a9b3a64d234094c2e66ef9b1fd054c441e31b8371e175ee340f0f6e0"
    control = Control(blob=hashlib.sha256(b"").hexdigest(), since=0, after=(None, "5" * 64, None))
    with_control = RoundOrder(**{**dict(order), "round": 2, "control": control})
    assert RoundOrder.parse(with_control.canonical()) == with_control
    assert with_control.digest() != RoundOrder(**{**dict(order), "round": 2}).digest()
