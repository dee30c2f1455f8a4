"""A run's history elsewhere: every number once, however often the run was resumed, and nothing else."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl_privacy.errors import CheckpointError, ConnectionFailed, ExtraMissing, RoundFailed
from fl_privacy.scientist.history import History, SkippedRound, Watcher, Watchers
from fl_privacy.scientist.mlflow_tracking import MLflow
from fl_privacy.scientist.tracking import Numbers, TensorBoard, Tracker, numbers, tracked
from tests.scientist.events import once, read_back
from tests.scientist.history_records import evaluated, spend, trained

TOLD = [name for name in vars(Watcher) if not name.startswith("_")]


class Kept:
    """A run's folder as trackers see it, with a history that grows."""

    def __init__(self, out: Path) -> None:
        out.mkdir(exist_ok=True)
        self.out = out
        self.settings = SimpleNamespace(plan=SimpleNamespace(name="a-plan"))
        self.history = History(out / "history.jsonl", 0.35)

    def read_history(self) -> History:
        return self.history

    def train(self, rounds: range, *told: Watcher) -> None:
        for number in rounds:
            self.history.append(trained(number))
            for watcher in told:
                watcher.round_done(self.history.rounds[-1])


@pytest.fixture
def run(tmp_path: Path) -> Any:
    return Kept(tmp_path / "run")


@pytest.mark.parametrize("name", TOLD)
def test_several_watchers_are_each_told_everything_that_one_would_be(name: str) -> None:
    given = [object() for _ in list(inspect.signature(getattr(Watcher, name)).parameters)[1:]]
    heard: list[tuple[str, tuple[object, ...]]] = []

    def listening(which: str) -> Watcher:
        watcher = Watcher()
        setattr(watcher, name, lambda *told: heard.append((which, told)))
        return watcher

    getattr(Watchers(listening("first"), listening("second")), name)(*given)
    assert heard == [("first", tuple(given)), ("second", tuple(given))]


def test_what_is_told_by_name_is_forwarded_by_name() -> None:
    heard: list[float] = []

    class Listener(Watcher):
        def waiting(self, error: RoundFailed, seconds_left: float) -> None:
            heard.append(seconds_left)

    Watchers(Listener()).waiting(error=RoundFailed(0, {}), seconds_left=3.0)
    assert heard == [3.0]


def test_every_number_of_a_run_is_in_the_events_as_it_is_in_the_history(run: Any, tmp_path: Path) -> None:
    board = TensorBoard(tmp_path / "events")
    with tracked([board], run, False, Watcher()) as told:
        run.train(range(3), told)
        run.history.append(evaluated(3))
        told.evaluated(run.history.evaluations[0])
    found = read_back(tmp_path / "events")
    assert found == once(numbers(run.history))
    for record in run.history.rounds:
        at = record.round + 1
        assert found["epsilon/bank", at] == [record.spends["bank"].epsilon]
        assert found["validation/loss", at] == [pytest.approx(math.log(record.perplexity), rel=1e-6)]
        assert found["bytes/up", at] == [record.bytes_up] and found["seconds/training", at] == [12.0]
        assert found["update/relative", at] == [pytest.approx(record.relative_update)]
    assert found["validation/accuracy", 0] == [pytest.approx(0.35)]
    assert ("update/noise_floor", 1) not in found and found["update/noise_floor", 2] == [pytest.approx(0.1)]
    assert found["evaluation/headline", 3] == [0.5] and ("evaluation/perplexity", 3) not in found


def test_events_are_there_while_the_run_goes_on(run: Any, tmp_path: Path) -> None:
    with tracked([TensorBoard(tmp_path / "events")], run, False, Watcher()) as told:
        run.train(range(1), told)
        assert read_back(tmp_path / "events") == once(numbers(run.history))


@pytest.mark.parametrize("lost", [0, 1, 2], ids=["none", "one", "two"])
def test_after_resuming_no_event_is_doubled_and_none_is_missing(run: Any, tmp_path: Path, lost: int) -> None:
    """``lost`` rounds were finished, but the process had died before trackers heard of them."""
    with tracked([TensorBoard(tmp_path / "events")], run, False, Watcher()) as told:
        run.train(range(2), told)
    run.train(range(2, 2 + lost))
    for _ in range(2):  # twice resumed
        with tracked([TensorBoard(tmp_path / "events")], run, True, Watcher()) as told:
            told.resumed(run.history, run.history.rounds_over)
            run.train(range(run.history.rounds_over, run.history.rounds_over + 1), told)
    assert read_back(tmp_path / "events") == once(numbers(run.history))
    assert len(run.history.rounds) == 4 + lost


def test_an_event_that_was_cut_short_by_a_crash_is_written_again(run: Any, tmp_path: Path) -> None:
    with tracked([TensorBoard(tmp_path / "events")], run, False, Watcher()) as told:
        run.train(range(2), told)
    (file,) = (tmp_path / "events").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert len(read_back(tmp_path / "events")) < len(numbers(run.history))
    with tracked([TensorBoard(tmp_path / "events")], run, True, Watcher()):
        pass
    assert read_back(tmp_path / "events") == once(numbers(run.history))


def test_a_finished_run_can_still_be_tracked(run: Any, tmp_path: Path) -> None:
    run.train(range(2))
    with tracked([TensorBoard(tmp_path / "events")], run, True, Watcher()):
        pass
    assert read_back(tmp_path / "events") == once(numbers(run.history))


@pytest.mark.parametrize("is_resumed", [False, True])
def test_events_of_another_run_are_refused_before_anything_is_trained(run: Any, tmp_path: Path, is_resumed: bool) -> None:
    other = Kept(tmp_path / "other")
    other.history.accuracy_before = 0.36
    with tracked([TensorBoard(tmp_path / "events")], other, False, Watcher()) as told:  # type: ignore[arg-type]
        other.train(range(2), told)
    run.train(range(2))
    with (
        pytest.raises(CheckpointError, match=r"events holds numbers of another run, such as .* at step"),
        tracked([TensorBoard(tmp_path / "events")], run, is_resumed, Watcher()),
    ):
        pytest.fail("began")


def test_the_events_hold_tags_and_numbers_and_no_other_word_of_the_history(run: Any, tmp_path: Path) -> None:
    with tracked([TensorBoard(tmp_path / "events")], run, False, Watcher()) as told:
        run.train(range(1), told)
    (file,) = (tmp_path / "events").iterdir()
    words = file.read_bytes()
    assert b"epsilon/bank" in words
    assert b"ab" * 32 not in words and b"cd" * 32 not in words and str(tmp_path).encode() not in words


def test_the_finished_models_evaluation_stands_after_the_last_round_when_a_run_ended_early(run: Any) -> None:
    run.train(range(2))
    run.history.append(SkippedRound(round=2, failures=({"bank": "away"},)))
    run.history.append(evaluated(10))  # of a plan with ten rounds
    assert {step for tag, step in numbers(run.history) if tag.startswith("evaluation/")} == {3}


def test_numbers_that_are_not_finite_are_left_out(run: Any) -> None:
    run.history.append(trained(0).model_copy(update={"perplexity": math.inf}))
    told = numbers(run.history)
    assert ("validation/loss", 1) not in told and ("validation/perplexity", 1) not in told
    assert all(math.isfinite(value) for value in told.values())


def test_a_periods_epsilon_stands_beside_the_total(run: Any) -> None:
    monthly = {"bank": spend(9.5, period_days=30, epsilon_in_period=1.5)}
    run.history.append(trained(0).model_copy(update={"spends": monthly}))
    told = numbers(run.history)
    assert (told["epsilon/bank", 1], told["epsilon_in_period/bank", 1]) == (9.5, 1.5)


@pytest.mark.parametrize(
    ("make", "package", "extra"),
    [(lambda: TensorBoard("x"), "tensorboard", "tracking"), (lambda: MLflow("http://127.0.0.1:5000"), "mlflow", "mlflow")],
    ids=["tensorboard", "mlflow"],
)
def test_a_missing_package_is_named_with_the_extra_to_install(
    make: Any, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("fl_privacy.scientist.tracking.find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(ExtraMissing, match=rf"{package} is not installed: .* '\.\[{extra}\]'"):
        make()


def test_neither_torch_nor_tensorflow_is_needed_to_write_events(tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["torch"] = sys.modules["tensorflow"] = None
from tensorboard.summary import Writer
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.util import tensor_util
Writer({str(tmp_path)!r}).add_scalar("a", 1.0, 0)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


class Flaky(Tracker):
    """A place that does not always take numbers."""

    place = "nowhere"

    def __init__(self) -> None:
        self.taken: dict[tuple[str, int], float] = {}
        self.answers = True

    def known(self) -> Numbers:
        return dict(self.taken)

    def add(self, new: Numbers) -> None:
        if not self.answers:
            raise ConnectionFailed("away")
        assert not new.keys() & self.taken.keys()
        self.taken |= new


def test_a_place_that_does_not_answer_in_between_gets_everything_with_the_next_round(run: Any) -> None:
    flaky = Flaky()
    with tracked([flaky], run, False, Watcher()) as told:
        flaky.answers = False
        run.train(range(2), told)
        assert flaky.taken == {}
        flaky.answers = True
        run.train(range(2, 3), told)
        assert flaky.taken == numbers(run.history)


def test_a_place_that_never_answers_is_told_of_when_the_run_is_over(run: Any) -> None:
    flaky = Flaky()
    flaky.answers = False
    with pytest.raises(ConnectionFailed), tracked([flaky], run, False, Watcher()) as told:
        run.train(range(2), told)
    assert len(run.history.rounds) == 2


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that is taken, and at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow's own store in a folder, which stands in for a server."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return str(tmp_path / "server")


def metrics_of(run: Any, server: str) -> list[tuple[str, int]]:
    from mlflow import MlflowClient

    client, kept = MlflowClient(tracking_uri=server), json.loads((run.out / "mlflow.json").read_text())
    tags = client.get_run(kept["run"]).data.metrics
    return sorted((point.key, point.step) for tag in tags for point in client.get_metric_history(kept["run"], tag))


def test_an_mlflow_run_has_every_number_once_also_after_resuming(run: Any, server: str) -> None:
    with tracked([MLflow(server)], run, False, Watcher()) as told:
        run.train(range(2), told)
    run.train(range(2, 3))  # which the tracker has not heard of
    with tracked([MLflow(server)], run, True, Watcher()) as told:
        told.resumed(run.history, 3)
        run.train(range(3, 4), told)
    assert metrics_of(run, server) == sorted(numbers(run.history))


def test_a_run_that_is_tracked_at_one_server_is_not_resumed_at_another(run: Any, server: str) -> None:
    with tracked([MLflow(server)], run, False, Watcher()) as told:
        run.train(range(1), told)
    with pytest.raises(CheckpointError, match="take that one"), tracked([MLflow(server + "2")], run, True, Watcher()):
        pytest.fail("began")


def test_a_server_that_is_not_there_is_told_of_before_anything_is_trained(
    run: Any, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = MLflow(f"http://127.0.0.1:{unused_port}")
    with pytest.raises(ConnectionFailed, match="the MLflow server at http"), tracked([server], run, False, Watcher()):
        pytest.fail("began")


def test_mlflows_telemetry_stays_off_unless_somebody_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    MLflow("http://127.0.0.1:5000")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
