"""A training worker of several processes, all locked in, and the ``[training]`` table that asks for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_privacy.errors import CorpusError, HomeError, OrderFailed, PolicyRefused
from fl_privacy.guard import worker
from fl_privacy.guard.domain import Domain, Training
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.learning import devices
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.round_order import RoundOrder
from tests.builders import write_domain
from tests.guard.conftest import Strongrooms, finished
from tests.guard.test_worker import job


def split(folder: Path, processes: int = 2, **changes: Any) -> worker.Job:
    """A job for several processes."""
    return job(folder, **changes).model_copy(update={"processes": processes})


def test_one_process_evaluates_whatever_the_number_for_training(tmp_path: Path) -> None:
    order = split(tmp_path, holdout=0.25, evaluation_noise=4.0, evaluation_bound=60.0, evaluate_every=1)
    changes = {"purpose": "evaluate", "holdout_key": "00" * 32, "tensors": order_specs(order.plan, "evaluate")}
    pids, others = [], set[int]()
    worker.run(order.model_copy(update=changes), lambda *_: others.update(companions(pids[0])), pids.append)
    assert np.fromfile(order.update, "<f4").shape == (4,) and not others


def companions(pid: int) -> list[int]:
    """The processes that a worker's first one has split off."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("who", [0, 1])
def test_a_process_killed_in_a_step_ends_the_order_and_all_other_processes(tmp_path: Path, who: int) -> None:
    order, pids = split(tmp_path, local_steps=5000), []

    def kill(step: int, steps: int) -> None:
        if step == 2:
            pids.extend(companions(pids[0]))
            os.kill(pids[who], signal.SIGKILL)

    with pytest.raises(OrderFailed):
        worker.run(order, kill, pids.append)
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("line", [7, 8])
def test_a_damaged_row_ends_the_order_with_its_line_whichever_process_reads_it(tmp_path: Path, line: int) -> None:
    order = split(tmp_path, batch_size=50)  # every row is sampled
    rows = Path(order.corpus).read_bytes().split(b"\n")
    rows[line - 1] = rows[line - 1].replace(b'"text"', b'"test"')
    Path(order.corpus).write_bytes(b"\n".join(rows))
    with pytest.raises(CorpusError, match=f"line {line}: damaged"):
        worker.run(order, lambda *_: None, lambda pid: None)


def test_an_owner_with_two_processes_seals_its_order(rooms: Strongrooms) -> None:
    bank, signed = rooms.guards["bank"], rooms.order()
    bank.home.domain = bank.home.domain.model_copy(update={"training": Training(processes=2)})
    bank.rounds.place(signed)
    assert finished(bank, RoundOrder.parse(signed.body).digest())["state"] == "sealed"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("processes = 0", "training.processes"),
        ("processes = 65", "training.processes"),
        ('processes = "two"', "training.processes"),
        ('device = "tpu"', "training.device"),
        ("gpus = 2", "training.gpus"),
    ],
)
def test_a_wrong_training_table_names_the_field(tmp_path: Path, table: str, told: str) -> None:
    with pytest.raises(HomeError, match=told):
        Domain.read(with_training(tmp_path, table))


def with_training(folder: Path, table: str) -> Path:
    path = write_domain(folder, "bank")
    path.write_text(f"{path.read_text()}[training]\n{table}\n")
    return path


def test_a_domain_file_that_says_nothing_trains_in_one_process_where_it_can() -> None:
    assert (Training().device, Training().processes) == ("auto", 1)


def test_a_guard_without_the_gpu_that_its_owner_asked_for_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GuardHome.create(tmp_path / "home", Domain.read(with_training(tmp_path, 'device = "cuda"'))).close()
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "fl_privacy.guard", str(tmp_path / "home")]
    ended = subprocess.run(command, capture_output=True, text=True, env=hidden, check=False, timeout=120)
    assert ended.returncode == 1
    assert "HomeError" in ended.stderr and 'domain.toml, [training]: device = "cuda": torch' in ended.stderr


@pytest.mark.parametrize(("gpus", "told"), [(0, "finds no GPU here"), (1, "finds 1 here; choose processes = 1")])
def test_fewer_gpus_than_processes_are_an_error_and_never_less_than_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, gpus: int, told: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(HomeError, match=told):
        devices.resolve("cuda", 2)
    assert devices.resolve("cpu", 2) == "cpu"


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (2, "cuda")])
def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, gpus: int, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert devices.resolve("auto", 2) == device


def test_a_guard_with_a_gpu_tells_that_files_are_not_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    home = GuardHome.create(tmp_path / "home", Domain.read(with_training(tmp_path, 'device = "auto"')))
    guard = Guard(home)
    told = guard.status()
    guard.close()
    assert told["training"] == {"device": "cuda", "processes": 1}
    assert told["sandbox"]["files"] == "not isolated"


def test_a_gpu_that_cannot_be_used_ends_the_order_with_a_typed_error(tmp_path: Path) -> None:
    if torch.cuda.device_count():
        pytest.skip("there is a GPU here, and it works")
    with pytest.raises(OrderFailed, match="GPU 0 cannot be used"):
        worker.run(job(tmp_path).model_copy(update={"device": "cuda"}), lambda *_: None, lambda pid: None)


@pytest.mark.skipif(not torch.cuda.device_count(), reason="needs a GPU that torch can use; there is none here")
def test_a_worker_on_a_gpu_leaves_one_finite_update_and_tells_what_is_not_isolated(tmp_path: Path) -> None:
    order = job(tmp_path).model_copy(update={"device": "cuda"})
    worker.run(order, lambda *_: None, lambda pid: None)
    update = np.fromfile(order.update, "<f4")
    assert np.isfinite(update).all() and update.any()
    strict = job(tmp_path).model_copy(update={"device": "cuda", "require_isolation": True, "update": str(tmp_path / "other")})
    with pytest.raises(PolicyRefused, match="files is not isolated"):
        worker.run(strict, lambda *_: None, lambda pid: None)
