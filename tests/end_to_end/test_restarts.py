"""`owner serve` starts again what ended by itself, a few times, and everything is where it was."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from fl_privacy import owner as owner_module
from fl_privacy.datasite import __main__ as alone
from fl_privacy.datasite import accounts
from fl_privacy.datasite.application import HOME
from fl_privacy.datasite.front_desk import GUARD_SOCKET
from fl_privacy.datasite.identity import DatasiteIdentity
from fl_privacy.datasite.launch import Datasite
from fl_privacy.errors import ConnectionFailed
from fl_privacy.owner import RESTARTS, RESTARTS_WITHIN, Owner
from fl_privacy.scientist.desk import Desk
from tests.builders import write_domain
from tests.datasite.guard_double import GuardDouble, serve
from tests.trust.syft_exploits import call, source, submission

EMAIL = "ada@lab.example.org"


class Stop(Exception):
    """Ends ``attend``."""


@dataclass
class Process:
    """Stands in for a datasite or a guard."""

    log: Path
    ends: int  # how often it has yet to end
    started: int = 0
    pid: int = 0

    @property
    def exit_status(self) -> int | None:
        if self.ends == 0:
            raise Stop
        return -9

    def start(self) -> None:
        self.started += 1
        self.ends -= 1

    def stop(self) -> None: ...


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Owner:
    monkeypatch.setattr(owner_module, "CHECK_SECONDS", 0)
    return Owner.init(tmp_path / "clinic", write_domain(tmp_path, "clinic"))


def test_a_datasite_that_ends_too_often_ends_the_service_with_its_log_named(owner: Owner) -> None:
    told: list[str] = []
    owner.datasite = site = Process(owner.home / "datasite.log", RESTARTS + 1)  # type: ignore[assignment]
    with pytest.raises(
        ConnectionFailed, match=rf"exit status -9\), after {RESTARTS} restarts .*see {re.escape(str(site.log))}"
    ):
        owner.attend(told.append)
    assert site.started == len(told) == RESTARTS
    assert [line in site.log.read_text() for line in (told[0].partition(";")[0], told[-1].partition(";")[0])] == [True, True]


def test_restarts_of_long_ago_are_forgotten(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, int(RESTARTS_WITHIN // RESTARTS) + 1))
    monkeypatch.setattr(owner_module.time, "monotonic", lambda: next(clock))
    owner.datasite = site = Process(owner.home / "datasite.log", 3 * RESTARTS)  # type: ignore[assignment]
    with pytest.raises(Stop):
        owner.attend(lambda _: None)
    assert site.started == 3 * RESTARTS


@dataclass
class Served:
    """A running `owner serve`, with what it prints."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line)

    def children(self) -> tuple[psutil.Process, psutil.Process]:
        """Guard and datasite."""
        children = psutil.Process(self.process.pid).children()
        (site,) = [child for child in children if HOME in child.environ()]
        (guard,) = [child for child in children if "fl_privacy.guard" in child.cmdline()]
        return guard, site


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    Owner.init(tmp_path / "clinic", write_domain(tmp_path, "clinic", epsilon=8.0))
    command = [sys.executable, "-m", "fl_privacy", "owner", "serve", "--home", str(tmp_path / "clinic")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        made = Served(process)
        threading.Thread(target=made.read, daemon=True).start()
        try:
            wait_for(lambda: any("answers at" in line for line in made.lines))
            yield made
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def wait_for(condition: Callable[[], Any], patience: float = 180.0) -> Any:
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.2)
    return found


def answers(url: str) -> bool:
    try:
        return bool(requests.get(f"{url}/api/v2/metadata", timeout=60).ok)
    except requests.ConnectionError:
        return False


def guard_answers(owner: Owner) -> bool:
    try:
        owner.guard.call("GET", "/v1/status")
    except ConnectionFailed:
        return False
    return True


@pytest.mark.slow
@pytest.mark.end_to_end
def test_a_killed_datasite_and_a_killed_guard_come_back_with_everything(served: Served, tmp_path: Path) -> None:
    owner = Owner.running(tmp_path / "clinic")
    url, password = owner.datasite.url, owner.invite("Ada", EMAIL)
    desk = Desk.login("clinic", url, EMAIL, password)
    name, text = source("return 1")
    call(desk._client, "code.request_code_execution", code=submission(desk._client, name, text))
    (before,) = owner.all_requests()
    guard, site = served.children()
    family = site.children(recursive=True)
    assert len(family) >= 2, "its fork server, and the process that decodes"

    site.kill()
    wait_for(lambda: any("datasite of clinic ended by itself (exit status -9)" in line for line in served.lines))
    wait_for(lambda: answers(url))
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert guard.is_running()
    assert owner.datasite.url == url
    assert owner.all_requests() == [before]
    assert Desk.login("clinic", url, EMAIL, password).request_state(before.id).status == "pending"
    assert "ended by itself (exit status -9)" in owner.datasite.log.read_text()

    guard.kill()
    wait_for(lambda: any("guard of clinic ended by itself (exit status -9)" in line for line in served.lines))
    wait_for(lambda: served.children()[0].pid != guard.pid)
    wait_for(lambda: guard_answers(owner))
    assert [request.id for request in owner.all_requests()] == [before.id]
    assert desk.relay.info()["owner"] == "clinic"


def asleep(site: Datasite) -> Datasite:
    """A process that stands in for a datasite's."""
    site._process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    return site


@pytest.mark.end_to_end
@pytest.mark.parametrize("is_real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_datasite_under_its_own_user_fails_when_it_is_killed_so_that_systemd_starts_it_again(
    is_real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket, home = tmp_path / "front.sock", tmp_path / "site"
    DatasiteIdentity.load_or_create(home, "alba")
    monkeypatch.setenv(GUARD_SOCKET, str(socket))
    real = Datasite.wait

    def kill(site: Datasite) -> int:
        os.kill(site._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        return real(site)

    monkeypatch.setattr(Datasite, "wait", kill)
    if not is_real:
        monkeypatch.setattr(Datasite, "start", asleep)
        monkeypatch.setattr(accounts, "login_owner", lambda _: None)
        monkeypatch.setattr(accounts, "publish_corpus", lambda *_: None)
    monkeypatch.setattr(alone.GuardClient, "call", lambda *_: [])  # no corpora
    with serve(GuardDouble().app(), uds=str(socket)), pytest.raises(ConnectionFailed, match="ended by itself .*-9"):
        alone.serve(home, None)
