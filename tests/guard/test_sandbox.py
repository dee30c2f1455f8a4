"""What a process cannot do any more once it has entered the sandbox: each attempt is made in a child of its own."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_privacy.guard import sandbox
from tests.guard.conftest import make_guard


def inside(secret: Path, action: Callable[[], Any]) -> str:
    """Enter the sandbox in a forked child and try: "done", or the name of the error's class."""

    def enter_and_try() -> None:
        sandbox.enter(secret)
        action()

    return outside(enter_and_try)


def outside(action: Callable[[], Any]) -> str:
    """Try in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        told = "died"
        try:
            action()
            told = "done"
        except (OSError, MemoryError, RuntimeError, ValueError) as problem:
            told = type(problem).__name__
        finally:
            os.write(writing, told.encode())
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        told = answer.read().decode()
    os.waitpid(child, 0)
    return told


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    path = tmp_path / "keys" / "he_secret.bin"
    path.write_bytes(b"a secret")
    isolation = sandbox.probe(path)
    if (isolation.network, isolation.files) != ("isolated", "isolated"):
        pytest.skip(f"this system cannot isolate a worker: {isolation}")
    return path


def test_a_worker_opens_no_socket_of_any_kind(secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(secret.parent / "owner.sock"))
        door.listen()
        for family, address in ((socket.AF_INET, ("127.0.0.1", 9)), (socket.AF_UNIX, str(secret.parent / "owner.sock"))):
            assert (
                inside(secret, lambda family=family, address=address: socket.socket(family).connect(address))
                == "PermissionError"
            )
    assert inside(secret, socket.socketpair) == "PermissionError"


def test_a_worker_neither_reads_nor_changes_the_keys_nor_any_other_file(secret: Path) -> None:
    attempts = [
        secret.read_bytes,
        lambda: list(secret.parent.iterdir()),
        lambda: secret.write_bytes(b""),
        secret.unlink,
        lambda: secret.rename(secret.parent / "elsewhere"),
        lambda: secret.chmod(0o777),
        lambda: (secret.parent / "new").write_bytes(b""),
        lambda: (secret.parent / "new").mkdir(),
        lambda: (secret.parent / "link").symlink_to(secret),
        lambda: Path("/etc/passwd").read_text(),
        lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY),
    ]
    assert [inside(secret, attempt) for attempt in attempts] == ["PermissionError"] * len(attempts)
    assert secret.read_bytes() == b"a secret" and list(secret.parent.iterdir()) == [secret]


def test_a_worker_starts_no_process_and_signals_none(secret: Path) -> None:
    for attempt in (os.fork, lambda: os.execv("/bin/true", ["true"]), lambda: os.kill(os.getppid(), 0)):
        assert inside(secret, attempt) == "PermissionError"


def test_a_worker_can_still_compute_with_threads_and_import_what_is_installed(secret: Path) -> None:
    def work() -> None:
        thread = threading.Thread(target=lambda: torch.ones(100, 100) @ torch.ones(100, 100))
        thread.start()
        thread.join()
        __import__("xmlrpc.client")

    assert inside(secret, work) == "done"


def test_a_worker_writes_to_the_file_that_was_opened_before(secret: Path, tmp_path: Path) -> None:
    with (tmp_path / "update").open("wb") as file:
        assert inside(secret, lambda: (file.write(b"update"), file.flush())) == "done"
    assert (tmp_path / "update").read_bytes() == b"update"


def test_memory_beyond_the_limit_is_an_error_in_the_worker_only(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MEMORY", 2 << 30)
    assert inside(secret, lambda: bytearray(3 << 30)) == "MemoryError"
    assert inside(secret, lambda: torch.ones(1 << 30)) == "RuntimeError"


def test_a_worker_leaves_no_core_file(secret: Path) -> None:
    def check() -> None:
        if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
            raise ValueError

    assert inside(secret, check) == "done"


def test_a_thread_that_begins_while_processes_meet_is_locked_in_as_well(secret: Path) -> None:
    tried: list[str] = []

    def attempt(told: threading.Event) -> None:
        told.wait()
        for action in (lambda: socket.socket(socket.AF_INET), secret.read_bytes):
            try:
                action()
            except PermissionError as problem:
                tried.append(type(problem).__name__)

    def check() -> None:
        entered = threading.Event()
        thread = threading.Thread(target=attempt, args=(entered,))
        isolation = sandbox.enter(secret, thread.start)
        entered.set()
        thread.join()
        if tried != ["PermissionError"] * 2 or isolation.missing:
            raise ValueError

    assert outside(check) == "done"


def test_what_a_thread_from_before_can_still_open_is_told(secret: Path) -> None:
    def check() -> None:
        waiting = threading.Event()
        threading.Thread(target=waiting.wait, daemon=True).start()
        if sandbox.enter(secret) != sandbox.Isolation(network="isolated", files="not isolated"):
            raise ValueError

    assert outside(check) == "done"


def test_only_a_worker_on_a_gpu_opens_the_gpus_files(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "GPU_FILES", "zero")
    for gpu, expected in ((True, "done"), (False, "PermissionError")):

        def check(gpu: bool = gpu) -> None:
            sandbox.enter(secret, gpu=gpu)
            os.close(os.open("/dev/zero", os.O_RDWR))

        assert outside(check) == expected


def test_processes_share_what_one_would_have_of_the_memory(secret: Path) -> None:
    def limit(processes: int) -> int:
        reading, writing = os.pipe()
        if os.fork() == 0:
            sandbox.enter(secret, processes=processes)
            os.write(writing, str(resource.getrlimit(resource.RLIMIT_DATA)[0]).encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as told:
            return int(told.read())

    assert limit(64) * 64 == pytest.approx(min(limit(1) * 64, limit(2) * 2), rel=1e-3)


def test_where_the_system_lacks_the_means_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_close_files", lambda gpu: None)
    monkeypatch.setattr(sandbox, "_filter_calls", lambda: None)
    isolation = sandbox.probe(tmp_path)
    assert (isolation.network, isolation.files) == ("not isolated", "not isolated")


def test_the_guards_status_tells_how_well_workers_are_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = sandbox.Isolation(network="not isolated", files="isolated")
    monkeypatch.setattr(sandbox, "probe", lambda secret: wanted)
    guard = make_guard(tmp_path, "bank")
    told = guard.status()
    guard.close()
    assert told["sandbox"] == {"network": "not isolated", "files": "isolated"}
