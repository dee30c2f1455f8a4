"""One data owner's two processes: the guard (strong room) and the datasite (front desk), under one folder.

HOME/guard      see ``guard.home``          HOME/datasite   Syft's state, identity and log
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from fl_privacy.datasite.front_desk import GUARD_SOCKET
from fl_privacy.datasite.launch import Datasite
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import ConnectionFailed, FlPrivacyError, HomeError, OrderRefused, PlanError
from fl_privacy.guard.client import FRONT_SOCKET, OWNER_SOCKET, GuardClient
from fl_privacy.guard.domain import Domain
from fl_privacy.messages import CorpusCard, Signed
from fl_privacy.template import REVOKED

if TYPE_CHECKING:
    from fl_privacy.datasite.requests import CodeRequest

LONGEST_SOCKET_PATH = 100  # bytes; Unix sockets allow 107
RESTARTS, RESTARTS_WITHIN = 5, 600.0  # seconds; a process that ends more often needs its owner
CHECK_SECONDS = 1.0  # from look to look whether guard and datasite still run


class Owner:
    """Start, stop and speak for one owner. Use as a context manager, or ``start`` and ``stop``."""

    def __init__(self, home: Path, port: int | None = None) -> None:
        """Args: ``home`` was made by ``Owner.init``; ``port`` of the datasite, a free one by default. Raises: HomeError."""
        self.home = home.resolve()
        self.guard_home = self.home / "guard"
        if len(os.fsencode(self.guard_home / OWNER_SOCKET)) > LONGEST_SOCKET_PATH:
            raise HomeError(f"the path {self.home} is too long for a Unix socket; choose a shorter folder")
        self.name = Domain.read(self.guard_home / "domain.toml").owner
        self.front_socket = Path(os.environ.get(GUARD_SOCKET) or self.guard_home / FRONT_SOCKET)
        self.datasite = Datasite(self.home / "datasite", self.name, self.front_socket, port)
        self.guard = GuardClient(self.guard_home / OWNER_SOCKET)
        self.guard_log = self.guard_home / "guard.log"
        self.guard_process: subprocess.Popen[bytes] | None = None
        self._desk: Any = None
        self._restarts = deque[float](maxlen=RESTARTS)  # when the latest were

    @classmethod
    def init(cls, home: Path, domain_file: Path) -> Owner:
        """Make a new owner's folder from a domain.toml. Raises: HomeError."""
        from fl_privacy.guard.home import GuardHome

        GuardHome.create(home / "guard", Domain.read(domain_file)).close()
        home.chmod(0o700)
        return cls(home)

    @classmethod
    def running(cls, home: Path) -> Owner:
        """The owner that another process serves. Raises: HomeError when nobody does."""
        owner = cls(home)
        try:
            owner.guard.call("GET", "/v1/status")
        except ConnectionFailed:
            raise HomeError(f"{home} is not being served; start it with `fl-privacy owner serve --home {home}`") from None
        return owner

    def start(self) -> Self:
        """Start the guard, then the datasite, and publish the corpus's mock rows. Raises: HomeError, ConnectionFailed."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.start_guard()
            self.datasite.start()
            self.publish()
            undo.pop_all()
        return self

    def start_guard(self, timeout: float = 180.0) -> None:
        """Start only the guard and wait until it answers."""
        with open(os.open(self.guard_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            command = [sys.executable, "-m", "fl_privacy.guard", str(self.guard_home)]
            if self.front_socket.parent != self.guard_home:
                command += ["--front-socket", str(self.front_socket)]
            self.guard_process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.guard_process.poll() is not None:
                raise HomeError(f"the guard of {self.name} ended while starting; see {self.guard_log}")
            try:
                self.guard.call("GET", "/v1/status")
                return
            except ConnectionFailed:
                time.sleep(0.1)
        raise ConnectionFailed(f"the guard of {self.name} did not answer in time; see {self.guard_log}")

    def stop(self) -> None:
        """Stop both processes; safe to call at any time."""
        self.datasite.stop()
        process, self.guard_process = self.guard_process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def publish(self) -> None:
        """Show the corpus's mock rows in Syft; the private side is only a reference."""
        from fl_privacy.datasite import accounts

        cards = [CorpusCard.model_validate(card) for card in GuardClient(self.front_socket).call("GET", "/v1/corpora")]
        accounts.publish_corpus(self.desk, cards)

    def propose(self, cards: Sequence[Signed] = (), serial: int | None = None, rotate: bool = False) -> Registry:
        """The registry that ``enrol`` would sign, to be looked at first. Raises: what ``enrol`` raises."""
        return self._registry("/v1/proposal", cards, serial, rotate)

    def enrol(self, cards: Sequence[Signed] = (), serial: int | None = None, rotate: bool = False) -> Registry:
        """Sign the registry of these owners, whose fingerprints were compared; see ``guard.enrolment``.

        Args: serial is given by an owner that joins later; rotate asks for a fresh HE key, for the same owners without cards.
        Raises: SignatureInvalid, MessageError, KeyMissing, OrderRefused.
        """
        return self._registry("/v1/enrol", cards, serial, rotate)

    def _registry(self, path: str, cards: Sequence[Signed], serial: int | None, rotate: bool) -> Registry:
        fields = {"cards": [card.model_dump(mode="json") for card in cards], "serial": serial, "rotate": rotate}
        return Registry.model_validate(self.guard.call("POST", path, json.dumps(fields).encode()))

    def card(self) -> Signed:
        """The owner's signed identity card."""
        return Signed.model_validate(GuardClient(self.front_socket).call("GET", "/v1/info")["card"])

    @property
    def desk(self) -> Any:
        """A Syft session with the owner's authority."""
        if self._desk is None:
            from fl_privacy.datasite import accounts

            self._desk = accounts.login_owner(self.datasite)
        return self._desk

    def invite(self, name: str, email: str) -> str:
        """Create a scientist's account; returns the generated password."""
        from fl_privacy.datasite import accounts

        return accounts.invite_scientist(self.desk, name, email)

    def all_requests(self) -> list[CodeRequest]:
        """Every code request, oldest first, with the numbers that the other commands take."""
        from fl_privacy.datasite import requests

        return requests.all_requests(self.desk)

    def request(self, number: int) -> CodeRequest:
        """One request by number. Raises: PlanError when there is none."""
        for request in self.all_requests():
            if request.number == number:
                return request
        raise PlanError(f"there is no request {number}; see `fl-privacy requests list`")

    def review(self, number: int) -> dict[str, Any]:
        """The guard's explanation of a request (fields of ``guard.review.Review`` and ``objection``)."""
        answer: dict[str, Any] = self.guard.call("POST", "/v1/review", _json(code=self.request(number).code))
        return answer

    def approve(self, number: int, days: int | None = None) -> None:
        """Approve a request, by default for the policy's ``approval_days``: the guard first, whose word counts, then Syft.

        Raises: NotApproved.
        """
        from fl_privacy.datasite import requests

        request = self.request(number)
        self.guard.call("POST", "/v1/approve", _json(code=request.code, days=days))
        requests.approve(self.desk, request)

    def approve_by_policy(self, skip: Collection[str] = ()) -> list[CodeRequest]:
        """Approve what the guard's ``auto_approve_epsilon`` covers; returns all that was looked at, but for ids in ``skip``."""
        from fl_privacy.datasite import requests

        looked_at = [request for request in requests.pending(self.desk) if request.id not in skip]
        for request in looked_at:
            with contextlib.suppress(FlPrivacyError):  # then the owner decides
                self.guard.call("POST", "/v1/approve-by-policy", _json(code=request.code))
                requests.approve(self.desk, request)
        return looked_at

    def attend(self, tell: Callable[[str], None], every: float = 10.0) -> NoReturn:
        """Start guard and datasite again when they end by themselves, and look whether the policy approves new requests.

        Args: tell shows the owner a line about each restart; the log has it, too. every: seconds from look to look.
        Raises: ConnectionFailed when one ends after ``RESTARTS`` restarts of both in ``RESTARTS_WITHIN`` seconds, and what
            ``start`` raises.
        """
        by_policy = Domain.read(self.guard_home / "domain.toml").policy.auto_approve_epsilon is not None
        seen, looked = set[str](), -math.inf
        while True:
            guard_status = None if self.guard_process is None else self.guard_process.poll()
            self._start_again("guard", guard_status, self.guard_log, self.start_guard, tell)
            self._start_again("datasite", self.datasite.exit_status, self.datasite.log, self.datasite.start, tell)
            if by_policy and time.monotonic() - looked >= every:
                with contextlib.suppress(FlPrivacyError, OSError):  # either process may just have ended
                    seen.update(request.id for request in self.approve_by_policy(seen))
                looked = time.monotonic()
            time.sleep(CHECK_SECONDS)

    def _start_again(
        self, part: str, status: int | None, log: Path, start: Callable[[], object], tell: Callable[[str], None]
    ) -> None:
        if status is None:
            return
        ended = f"the {part} of {self.name} ended by itself (exit status {status})"
        if len(self._restarts) == RESTARTS and time.monotonic() - self._restarts[0] < RESTARTS_WITHIN:
            raise ConnectionFailed(f"{ended}, after {RESTARTS} restarts within {RESTARTS_WITHIN / 60:.0f} minutes; see {log}")
        self._restarts.append(time.monotonic())
        told = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {ended} and is started again"
        with log.open("a") as file:
            file.write(f"{told}\n")
        tell(f"{told}; see {log}")
        start()

    def deny(self, number: int, reason: str) -> None:
        """Deny a request; the scientist reads the reason. Foreign code is only noted in Syft: no plan can be read from it."""
        from fl_privacy.datasite import requests

        request = self.request(number)
        with contextlib.suppress(PlanError):  # not the template: the guard would never run it
            self.guard.call("POST", "/v1/deny", _json(code=request.code, reason=reason))
        requests.deny(self.desk, request, reason)

    def revoke(self, number: int, reason: str) -> None:
        """Take an approval back at once: the guard first, which ends its training and refuses its orders, then Syft.

        Raises: NotApproved when the guard has no approval of it.
        """
        from fl_privacy.datasite import requests

        request = self.request(number)
        self.guard.call("POST", "/v1/revoke", _json(code=request.code, reason=reason))
        requests.deny(self.desk, request, REVOKED + reason)

    def jobs(self) -> list[dict[str, Any]]:
        """The guard's latest orders, newest first; see ``guard.jobs``."""
        answer: list[dict[str, Any]] = self.guard.call("GET", "/v1/jobs")
        return answer

    def stop_job(self, order: str, reason: str) -> None:
        """End an order's training; ``order`` is its digest, or the beginning of just one. Raises: OrderRefused."""
        found = [job["order"] for job in self.jobs() if job["order"].startswith(order)]
        if len(found) != 1:
            raise OrderRefused(f"{len(found)} orders begin with {order!r}; see `fl-privacy owner jobs`")
        self.guard.call("POST", f"/v1/jobs/{found[0]}/stop", _json(reason=reason))

    def pause(self, reason: str) -> None:
        """Have the guard admit, close, reveal and open nothing until ``resume``, also after a restart."""
        self.guard.call("POST", "/v1/pause", _json(reason=reason))

    def resume(self) -> None:
        """Go on after ``pause``."""
        self.guard.call("POST", "/v1/resume")

    def ledger(self) -> dict[str, Any]:
        """``statement`` and all ``entries``, as the guard tells them; ``read_ledger`` verifies the file itself."""
        answer: dict[str, Any] = self.guard.call("GET", "/v1/ledger")
        return answer


def _json(**fields: str | int | None) -> bytes:
    return json.dumps(fields).encode()
