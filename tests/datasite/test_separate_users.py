"""Guard and datasite under two OS users: the datasite's reaches nothing of the guard but its front socket, and all works."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fl_privacy
from fl_privacy.datasite.front_desk import GUARD_SOCKET
from fl_privacy.errors import ConnectionFailed, HomeError
from fl_privacy.guard.client import GuardClient
from fl_privacy.guard.corpus import add_corpus
from fl_privacy.guard.home import GuardHome
from fl_privacy.messages import Row, sign
from fl_privacy.owner import Owner
from fl_privacy.scientist.desk import Desk
from fl_privacy.template import render
from tests.builders import texts, tiny_bundle, tiny_plan, write_domain

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start other users' processes"),
]

GUARD, DESK, STRANGER, FRONT = 61001, 61002, 61003, 61004  # three users and one group, by number: nothing is created
PACKAGES = [str(Path(fl_privacy.__file__).parents[1]), *(path for path in sys.path if path.endswith("site-packages"))]

# tried by another user: every way to a file, a socket or a process of the guard; prints those that succeeded
ATTACK = """
import ctypes, json, os, pathlib, socket, sys
guard, pid, files = pathlib.Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
done = []
def attempt(what, do):
    try:
        do()
        done.append(what)
    except OSError:
        pass
def connect(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
attempt("list", lambda: os.listdir(guard))
for name in files:
    attempt("read " + name, lambda: (guard / name).open("rb").read(1))
    attempt("write " + name, lambda: (guard / name).open("ab").close())
    attempt("remove " + name, lambda: (guard / name).unlink())
attempt("chmod", lambda: guard.chmod(0o777))
attempt("owner.sock", lambda: connect(guard / "owner.sock"))
attempt("front", lambda: connect(sys.argv[4]))
attempt("replace front", lambda: os.unlink(sys.argv[4]))
for name in ("mem", "environ", "maps", "fd", "cwd", "root"):
    place = f"/proc/{pid}/{name}"
    look = {"fd": os.listdir, "cwd": os.readlink, "root": os.readlink}.get(name, lambda place: open(place, "rb"))
    attempt(place, lambda: look(place))
attempt("kill", lambda: os.kill(pid, 15))
def trace():
    if ctypes.CDLL(None, use_errno=True).ptrace(16, pid, 0, 0) != 0:  # PTRACE_ATTACH
        raise OSError
attempt("ptrace", trace)
print(json.dumps(done))
"""


@dataclass
class Site:
    owner: Owner
    guard: subprocess.Popen[bytes]
    desk: subprocess.Popen[bytes]
    python: str

    def attack(self, user: int, groups: tuple[int, ...] = ()) -> list[str]:
        """What another user could do."""
        home = self.owner.guard_home
        files = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
        assert {"corpus", "keys", "ledger.sqlite"} <= {Path(name).parts[0] for name in files}
        arguments = [str(home), str(self.guard.pid), json.dumps(files), str(self.owner.front_socket)]
        command = [self.python, "-c", ATTACK, *arguments]
        told = subprocess.run(command, user=user, group=user, extra_groups=groups, cwd="/", check=True, capture_output=True)
        return [str(what) for what in json.loads(told.stdout)]


def an_interpreter(folder: Path) -> str:
    """A Python that another user can run with this one's packages, and without those of the system."""
    environment = {"PYTHONPATH": ":".join(PACKAGES), "HOME": "/"}
    for base in (sys.executable, "/usr/bin/python3.11"):
        if not Path(base).exists():
            continue
        subprocess.run([base, "-m", "venv", "--clear", "--without-pip", folder], check=True, capture_output=True)
        command = [str(folder / "bin" / "python"), "-c", "import fl_privacy.messages"]
        try:
            subprocess.run(command, user=STRANGER, group=STRANGER, extra_groups=(), cwd="/", env=environment, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return command[0]
    pytest.skip("no Python 3.11 with this package can be run by another user here")


def hand(folder: Path, user: int) -> None:
    """Give a folder and all in it to a user."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    home = Path(tempfile.mkdtemp(prefix="fl_privacy_users_"))  # pytest's own folders are closed to other users
    home.chmod(0o711)
    started: list[subprocess.Popen[bytes]] = []
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(GUARD_SOCKET, str(home / "front" / "front.sock"))
        try:
            python = an_interpreter(home / "python")
            owner = prepare(home)
            home.chmod(0o711)
            run = starter(python, started)
            guard = run(
                GUARD, home / "guard", "fl_privacy.guard", str(home / "guard"), "--front-socket", str(owner.front_socket)
            )
            wait_for(lambda: owner.guard.call("GET", "/v1/status"), guard, home / "guard" / "test.log")
            desk = run(DESK, home / "datasite", "fl_privacy.datasite", str(home / "datasite"))
            wait_for(lambda: published(owner), desk, home / "datasite" / "test.log")
            yield Site(owner, guard, desk, python)
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(30)
            shutil.rmtree(home)


def prepare(home: Path) -> Owner:
    """What an administrator does before the services start: make, fill, and give away."""
    owner = Owner.init(home, write_domain(home, "clinic"))
    rows = home / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(60)), encoding="utf-8")
    with GuardHome(owner.guard_home) as guard:
        add_corpus(guard, rows, [Row(text="made up")] * 3)
    rows.unlink()
    hand(owner.guard_home, GUARD)
    hand(owner.datasite.home, DESK)
    owner.front_socket.parent.mkdir()
    os.chown(owner.front_socket.parent, GUARD, FRONT)
    owner.front_socket.parent.chmod(0o750)
    return owner


def starter(python: str, started: list[subprocess.Popen[bytes]]) -> Callable[..., subprocess.Popen[bytes]]:
    def run(user: int, folder: Path, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {"PYTHONPATH": ":".join(PACKAGES), "HOME": str(folder), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        environment |= {GUARD_SOCKET: os.environ[GUARD_SOCKET], "TMPDIR": "/tmp"}
        with (folder / "test.log").open("wb") as log:
            process = subprocess.Popen(
                [python, "-m", module, *arguments], user=user, group=user, extra_groups=[FRONT], umask=0o077,
                env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        started.append(process)
        return process

    return run


def published(owner: Owner) -> Any:
    (dataset,) = owner.desk.api.services.dataset.get_all()
    return dataset


def wait_for(question: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "".join(path.read_text() for path in log.parent.glob("*.log"))
        try:
            question()
            return
        except (ConnectionFailed, HomeError, ValueError):
            time.sleep(0.2)
    raise TimeoutError(log.read_text())


def test_the_datasites_user_reaches_the_front_socket_of_the_guard_and_nothing_else(site: Site) -> None:
    assert site.attack(DESK, (FRONT,)) == ["front"]


def test_another_user_does_not_even_reach_the_front_socket(site: Site) -> None:
    assert site.attack(STRANGER) == []


def test_the_same_attempts_succeed_for_the_guards_own_user(site: Site) -> None:
    """Or the attack itself would be broken; on a copy, for it deletes what it can."""
    copy = Path(tempfile.mkdtemp(prefix="fl_privacy_users_"))
    try:
        shutil.copytree(site.owner.guard_home, copy / "guard", ignore=shutil.ignore_patterns("*.sock"))
        hand(copy, GUARD)
        names = [str(path.relative_to(copy / "guard")) for path in (copy / "guard").rglob("*") if path.is_file()]
        sleeper = subprocess.Popen([site.python, "-c", "import time; time.sleep(60)"], user=GUARD, group=GUARD, extra_groups=())
        arguments = [str(copy / "guard"), str(sleeper.pid), json.dumps(names), str(copy / "nothing")]
        command = [site.python, "-c", ATTACK, *arguments]
        told = subprocess.run(command, user=GUARD, group=GUARD, extra_groups=(), cwd="/", check=True, capture_output=True)
        done = set(json.loads(told.stdout))
        sleeper.wait(10)
        assert {"list", "chmod", "kill", f"/proc/{sleeper.pid}/environ", f"/proc/{sleeper.pid}/mem"} <= done
        assert {f"{verb} {name}" for verb in ("read", "write", "remove") for name in names} <= done
    finally:
        shutil.rmtree(copy)


def test_the_guards_user_cannot_speak_for_the_owner_in_syft(site: Site) -> None:
    identity = site.owner.datasite.home / "identity.json"
    command = [site.python, "-c", "import sys; open(sys.argv[1])", str(identity)]
    denied = subprocess.run(command, user=GUARD, group=GUARD, extra_groups=(), cwd="/", check=False, capture_output=True)
    assert b"PermissionError" in denied.stderr


def test_nothing_that_either_service_wrote_can_be_read_by_others(site: Site) -> None:
    for folder in (site.owner.guard_home, site.owner.datasite.home):
        assert folder.stat().st_mode & 0o077 == 0
    assert (site.owner.guard_home / "owner.sock").stat().st_mode & 0o777 == 0o600
    front = site.owner.front_socket.stat()
    assert (front.st_mode & 0o777, front.st_gid) == (0o660, FRONT)


def test_an_administrator_invites_and_a_scientist_sees_uploads_and_asks(site: Site, tmp_path: Path) -> None:
    email = "ada@lab.example.org"
    desk = Desk.login("clinic", site.owner.datasite.url, email, site.owner.invite("Ada", email))
    assert [card.owner for card in desk.corpora()] == ["clinic"]
    blob = secrets.token_bytes(1 << 20)
    digest = desk.relay.put_blob(blob)
    kept = site.owner.guard_home / "inbox" / digest
    assert (kept.read_bytes(), kept.stat().st_uid) == (blob, GUARD)

    code = render(sign(tiny_plan(tiny_bundle()), desk.relay._key))
    desk.submit(code, "separate users")
    (request,) = site.owner.all_requests()
    assert request.code == code
    assert "sentence" in site.owner.review(request.number)
    assert GuardClient(site.owner.front_socket).call("GET", "/v1/info")["owner"] == "clinic"
    desk.close()
