"""A scientist's rounds against guards in this process: who fails is named, two openers must agree, attempts are bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from fl_privacy.encryption.evidence import OPENERS, Evidence, verify_round
from fl_privacy.errors import OrderFailed, RoundFailed
from fl_privacy.guard.admission import round_spend
from fl_privacy.guard.guard import Guard
from fl_privacy.messages import OpenedSum, OpenRequest, Signed, sign
from fl_privacy.parameters import flatten
from fl_privacy.scientist import rounds
from fl_privacy.scientist.deliveries import Delivery
from fl_privacy.scientist.history import RoundRecord, Watcher
from fl_privacy.scientist.preview import preview
from fl_privacy.scientist.rounds import Opened, run_round
from fl_privacy.strategies.stopping import noise_floor
from tests.guard.conftest import ROWS, Strongrooms, finished, make_strongrooms
from tests.guard.protocol import Worker, changed
from tests.guard_desk import GuardDesk, unreachable
from tests.scientist.runs import FOUR, a_run, rooms_of_four


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(rounds, "PAUSE_SECONDS", 0.05)


@pytest.fixture
def rooms(tmp_path: Path, worker: Worker) -> Iterator[Strongrooms]:
    with rooms_of_four(tmp_path, retries=2) as made:
        yield made


@pytest.fixture
def desks(rooms: Strongrooms) -> dict[str, GuardDesk]:
    return {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}


def carry(rooms: Strongrooms, desks: Mapping[str, GuardDesk], folder: Path, **changes: object) -> Opened:
    blobs = (Delivery(rooms.bundle.vocabulary), Delivery(rooms.bundle.weights))
    registry = rooms.guards["bank"].home.registry
    return run_round(desks, "function", rooms.order(**changes), blobs, registry, Evidence(folder), 30.0, lambda *_: None)


def test_a_round_gives_the_mean_and_evidence_that_anybody_can_verify(
    rooms: Strongrooms, desks: dict[str, GuardDesk], worker: Worker, tmp_path: Path
) -> None:
    opened = carry(rooms, desks, tmp_path / "000")
    found = verify_round(tmp_path / "000", rooms.guards["bank"].home.registry)
    assert (found.order, found.cohort, found.openers) == (opened.order.digest(), FOUR, ("bank", "clinic"))
    values = flatten(opened.mean, opened.order.tensors)
    assert values.tobytes() == (tmp_path / "000" / "values.bin").read_bytes()
    drawn = [np.random.default_rng(n + 1).uniform(-0.04, 0.04, values.size) for n in range(4)]
    assert np.abs(values - np.mean(drawn, axis=0)).max() <= 4 * opened.order.encoding.value_range / 127
    assert opened.bytes_up > 4 * opened.ciphertext_bytes > 0


def test_a_forecast_of_bytes_is_what_a_round_takes(rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path) -> None:
    opened = carry(rooms, desks, tmp_path / "000")
    cards = {owner: guard.corpora() for owner, guard in rooms.guards.items()}
    first, second = preview(rooms.plan, rooms.bundle, cards, {}).by_round
    assert first.bytes_up == second.bytes_up == pytest.approx(opened.bytes_up, rel=0.02)
    assert second.bytes_down < first.bytes_down == pytest.approx(opened.bytes_down, rel=0.02)


def test_a_model_that_owners_have_is_not_sent_again(rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path) -> None:
    first, again = carry(rooms, desks, tmp_path / "0"), carry(rooms, desks, tmp_path / "1", attempt=1)
    total = (tmp_path / "1" / "total.bin").stat().st_size
    saved = len(FOUR) * (len(rooms.bundle.weights) + len(rooms.bundle.vocabulary))
    digits = 1_000  # words tell of seconds, in more of them or fewer
    assert first.bytes_down - again.bytes_down == pytest.approx(saved, abs=digits)
    assert 0 < again.bytes_down - OPENERS * total < 120_000, "the sum to those who open it, and the cohort's words"


def test_an_owner_that_has_lost_the_model_since_gets_it_again(
    rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path
) -> None:
    carry(rooms, desks, tmp_path / "0")
    sent = {owner: desk.bytes_sent for owner, desk in desks.items()}
    rooms.guards["shop"].blobs.discard(rooms.plan.model.weights)
    carry(rooms, desks, tmp_path / "1", round=1)  # which clinic and school open
    words = desks["bank"].bytes_sent - sent["bank"]
    assert desks["shop"].bytes_sent - sent["shop"] - words == len(rooms.bundle.weights)
    assert words < 2 * 20_000, "a closing and a reveal, shown to both alike"


def test_openers_rotate_with_round_and_attempt(rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path) -> None:
    assert carry(rooms, desks, tmp_path / "0").openers == ("bank", "clinic")
    assert carry(rooms, desks, tmp_path / "1", round=1).openers == ("clinic", "school")
    assert carry(rooms, desks, tmp_path / "2", round=1, attempt=2).openers == ("shop", "bank")


def test_another_owner_stands_in_for_an_opener_that_fails(
    rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path
) -> None:
    desks["bank"].before = unreachable("open")
    assert carry(rooms, desks, tmp_path / "0").openers == ("clinic", "school")


def test_with_one_opener_only_the_round_fails_and_names_the_others(
    rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path
) -> None:
    for owner in FOUR[1:]:
        desks[owner].before = unreachable("open")
    with pytest.raises(RoundFailed) as failed:
        carry(rooms, desks, tmp_path / "0")
    assert sorted(failed.value.failures) == ["clinic", "school", "shop"]
    assert not (tmp_path / "0" / "request.json").exists()


def test_openers_that_disagree_fail_the_round_and_are_both_named(
    rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path
) -> None:
    clinic = rooms.guards["clinic"]
    honest = clinic.closing.open

    def lying(request: OpenRequest) -> Signed:
        word = OpenedSum.parse(honest(request).body)
        return sign(changed(word, values="ab" * 32), clinic.home.identity.signing_key)

    clinic.closing.open = lying  # type: ignore[method-assign]
    with pytest.raises(RoundFailed, match="the other not") as failed:
        carry(rooms, desks, tmp_path / "0")
    assert sorted(failed.value.failures) == ["bank", "clinic"]


def test_an_owner_that_is_restarted_in_time_costs_no_attempt(
    rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path
) -> None:
    """Between survivor list and reveal nothing may be given up: the scientist waits, and asks again. So it does before."""
    desks["bank"].before = unreachable("train", times=2)
    desks["shop"].before = unreachable("fetch", times=2)
    desks["clinic"].before = unreachable("close", times=2)
    desks["school"].before = unreachable("reveal", times=2)
    assert carry(rooms, desks, tmp_path / "0").order.attempt == 0


@pytest.mark.parametrize("step", ["train", "fetch", "close", "reveal"])
def test_an_owner_that_is_gone_is_named_wherever_it_goes(
    rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path, step: str
) -> None:
    desks["school"].before = unreachable(step)
    with pytest.raises(RoundFailed) as failed:
        carry(rooms, desks, tmp_path / "0")
    assert list(failed.value.failures) == ["school"]
    assert "ConnectionFailed" in failed.value.failures["school"]


def test_a_ciphertext_that_cannot_be_added_is_its_owners_fault(
    rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path
) -> None:
    """The owner signed for these very bytes, so only adding finds out; nobody has signed a survivor list yet."""
    honest = desks["school"].fetch_blob

    def spoiled(digest: str, path: Path) -> None:
        honest(digest, path)
        path.write_bytes(path.read_bytes()[:-64] + b"\xff" * 32)

    desks["school"].fetch_blob = spoiled  # type: ignore[method-assign]
    with pytest.raises(RoundFailed) as failed:
        carry(rooms, desks, tmp_path / "0")
    assert list(failed.value.failures) == ["school"]
    assert not list(rooms.guards["bank"].home.folder.glob("rounds/*/closing.json"))


def test_words_for_another_order_or_in_anothers_name_are_the_senders_fault(
    rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path
) -> None:
    stale = Signed.model_validate(rooms.guards["school"].rounds.state(place_and_wait(rooms, "school"))["receipt"])
    desks["school"].run = lambda *_: stale.model_dump(mode="json")  # type: ignore[method-assign]
    with pytest.raises(RoundFailed) as failed:
        carry(rooms, desks, tmp_path / "0", attempt=1)
    assert list(failed.value.failures) == ["school"]
    desks["school"].run = lambda *_: {"surprise": 1}  # type: ignore[method-assign]
    with pytest.raises(RoundFailed, match="school: MessageError"):
        carry(rooms, desks, tmp_path / "0", attempt=2)


def place_and_wait(rooms: Strongrooms, owner: str) -> str:
    digest = str(rooms.guards[owner].rounds.place(rooms.order())["digest"])
    finished(rooms.guards[owner], digest)
    return digest


class Seen(Watcher):
    """Remembers what a run tells."""

    def __init__(self) -> None:
        self.failed: list[tuple[list[str], int]] = []
        self.skipped: list[int] = []
        self.done: list[RoundRecord] = []
        self.phases: dict[str, list[str]] = {}

    def phase(self, owner: str, phase: str) -> None:
        self.phases.setdefault(owner, []).append(phase)

    def round_failed(self, error: RoundFailed, attempts_left: int) -> None:
        self.failed.append((sorted(error.failures), attempts_left))

    def round_skipped(self, round_index: int, failures: Sequence[Mapping[str, str]]) -> None:
        self.skipped.append(round_index)

    def round_done(self, record: RoundRecord) -> None:
        self.done.append(record)


def failing(worker: Worker, *turns: tuple[str, int]) -> None:
    """Let an owner's training of a given number fail."""

    def fail(job: object) -> None:
        for owner, number in turns:
            if f"/{owner}/" in job.update and worker.trained_by(owner) == number:  # type: ignore[attr-defined]
                raise OrderFailed("the training worker ended with code -9")

    worker.fail = fail  # type: ignore[assignment]


def spent(guard: Guard) -> float:
    return guard.home.ledger.statement().epsilon_spent


def test_a_run_without_failures_has_a_record_and_evidence_for_every_round(
    rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path
) -> None:
    history = a_run(rooms, desks, seen := Seen()).train(tmp_path / "out")
    assert [(record.round, record.attempt, record.cohort) for record in history.rounds] == [(0, 0, FOUR), (1, 0, FOUR)]
    assert [record.openers for record in seen.done] == [("bank", "clinic"), ("clinic", "school")]
    known = [phase for phase in seen.phases["bank"] if phase != "encrypting"]  # told with the last step, if that is seen
    turn = ["sending", "fetching", "adding", "agreeing"]
    assert known == [*turn, "opening", *turn], "bank opens the first sum only"
    assert all(record.failure_log2 < -40 for record in history.rounds)
    for number in ("000", "001"):
        verify_round(tmp_path / "out" / "rounds" / number, rooms.guards["bank"].home.registry)


def test_a_record_has_the_norm_that_noise_alone_would_have_from_the_owners_receipts(tmp_path: Path, worker: Worker) -> None:
    rooms = make_strongrooms(tmp_path, owners=FOUR, optimizer="sgd")
    desks = {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}
    history = a_run(rooms, desks, Seen()).train(tmp_path / "out")
    sigma = round_spend(rooms.plan, ROWS).noise_multiplier
    sizes = dict.fromkeys(FOUR, ROWS)
    for record in history.rounds:
        expected = noise_floor(rooms.plan, record.round, record.parameters, dict.fromkeys(FOUR, sigma), sizes)
        assert record.noise_floor == pytest.approx(expected)
    for guard in rooms.guards.values():
        guard.close()


def test_after_a_failure_the_others_go_on_without_training_again(
    rooms: Strongrooms, desks: dict[str, GuardDesk], worker: Worker, tmp_path: Path
) -> None:
    failing(worker, ("shop", 1))
    history = a_run(rooms, desks, seen := Seen()).train(tmp_path / "out")
    assert seen.failed == [(["shop"], 2)]
    assert [(record.attempt, record.cohort) for record in history.rounds] == [(1, FOUR[:3]), (0, FOUR)]
    assert [worker.trained_by(owner) for owner in FOUR] == [2, 2, 2, 2]
    verify_round(tmp_path / "out" / "rounds" / "000", rooms.guards["bank"].home.registry)


def test_with_too_few_left_the_failed_owners_are_asked_again_and_the_others_resend(
    rooms: Strongrooms, desks: dict[str, GuardDesk], worker: Worker, tmp_path: Path
) -> None:
    failing(worker, ("shop", 1), ("school", 1))
    history = a_run(rooms, desks, Seen()).train(tmp_path / "out")
    assert [(record.attempt, record.cohort) for record in history.rounds] == [(1, FOUR), (0, FOUR)]
    assert [worker.trained_by(owner) for owner in FOUR] == [2, 2, 3, 3]
    assert spent(rooms.guards["school"]) > spent(rooms.guards["bank"]), "what was lost in training stays spent"


def test_a_round_is_skipped_after_three_attempts_and_the_run_goes_on(
    rooms: Strongrooms, desks: dict[str, GuardDesk], worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "PATIENCE_SECONDS", 0.0)  # asked once in each attempt
    for owner in ("school", "shop"):
        desks[owner].before = unreachable("train", times=3)
    history = a_run(rooms, desks, seen := Seen()).train(tmp_path / "out")
    assert (seen.skipped, [left for _, left in seen.failed]) == ([0], [2, 1, 0])
    assert [record.round for record in history.rounds] == [1]
    lines = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    assert lines[0]["skipped"] is True and len(lines[0]["failures"]) == 3 and "school" in lines[0]["failures"][0]
    assert [worker.trained_by(owner) for owner in FOUR] == [2, 2, 1, 1], "attempts resend; the next round trains"
    assert not (tmp_path / "out" / "rounds" / "000").exists()


def test_two_skipped_rounds_in_a_row_end_the_run(rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path) -> None:
    desks["shop"].before = desks["school"].before = unreachable("train")
    with pytest.raises(RoundFailed, match="round 1 was not opened") as failed:
        a_run(rooms, desks, seen := Seen()).train(tmp_path / "out")
    assert seen.skipped == [0, 1]
    assert sorted(failed.value.failures) == ["school", "shop"]


def test_a_run_in_which_nothing_was_trained_is_an_error(
    rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path
) -> None:
    desks["shop"].before = desks["school"].before = unreachable("train")
    run = a_run(rooms, desks, Seen())
    object.__setattr__(rooms.plan, "rounds", 1)
    with pytest.raises(RoundFailed):
        run.train(tmp_path / "out")
