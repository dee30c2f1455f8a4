"""One datasite as the scientist sees it: corpora, code requests, jobs, and the relay for blobs."""

from __future__ import annotations

import ast
import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import syft
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from syft.service.code.user_code import SubmitUserCode
from syft.service.job.job_stash import JobStatus
from syft.service.policy.policy import OutputPolicyExecuteCount
from syft.service.request.request import RequestStatus
from syft.types.uid import UID

from fl_privacy.errors import (
    ConnectionFailed,
    CredentialsRefused,
    FlPrivacyError,
    NotApproved,
    OwnerFailed,
    PlanError,
    RequestDenied,
    from_wire,
)
from fl_privacy.messages import CorpusCard
from fl_privacy.scientist.relay import RelayClient
from fl_privacy.scientist.timed_connection import TimedConnection
from fl_privacy.scientist.views import RequestState
from fl_privacy.template import REVOKED

POLL_SECONDS = 0.25
EXECUTIONS = 1_000_000  # Syft's own count is no limit; the guard's schedule and budget are

Progress = Callable[[int, int], None]


_STATES: dict[RequestStatus, Literal["pending", "approved", "denied"]] = {
    RequestStatus.PENDING: "pending",
    RequestStatus.APPROVED: "approved",
    RequestStatus.REJECTED: "denied",
}


class Desk:
    """A scientist's session at one datasite. Use one desk from one thread at a time; several desks may work at once."""

    def __init__(self, owner: str, url: str, email: str, client: Any) -> None:
        self.owner, self.url, self.email = owner, url, email
        self._client = client
        key = Ed25519PrivateKey.from_private_bytes(bytes(client.credentials.signing_key))
        self.relay = RelayClient(owner, url, key)

    @classmethod
    def login(cls, owner: str, url: str, email: str, password: str) -> Desk:
        """Open a session. Raises: ConnectionFailed, CredentialsRefused."""
        try:
            connection = TimedConnection(url=url)
            guest = syft.DatasiteClient(connection=connection)
            key = connection.login(email=email.lower(), password=password)
        except OSError:  # every error of the HTTP library that Syft uses is one
            raise ConnectionFailed(f"the datasite of {owner} at {url} does not answer; is it running?") from None
        except syft.SyftException:
            told = f"{owner} does not accept this e-mail and password; ask the owner for an invitation"
            raise CredentialsRefused(told) from None
        return cls(owner, url, email, syft.DatasiteClient(connection, metadata=guest.metadata, credentials=key.signing_key))

    def corpora(self) -> list[CorpusCard]:
        """What the owner publishes: mock rows in full, declared sizes."""
        return self.relay.corpora()

    def submit(self, code: str, plan_name: str) -> str:
        """Ask the owner to approve code; returns the request's id, the same one if it was asked before.

        Raises: PlanError, OwnerFailed.
        """
        services = self._services
        mine = {known.id for known in self._ask(services.code.get_all_for_user) if known.raw_code == code}
        for request in self._ask(services.request.get_all) if mine else ():
            if request.code_id in mine:
                return str(request.id)
        submission = _submission(code, self._client)
        return str(self._ask(partial(services.code.request_code_execution, code=submission, reason=plan_name)).id)

    def request_state(self, request_id: str) -> RequestState:
        """Whether the owner has decided, and why not. Raises: OwnerFailed."""
        request = self._ask(partial(self._services.request.get_by_uid, UID.from_string(request_id)))
        status = _STATES[self._ask(lambda: request.status)]
        if status != "denied":
            return RequestState(status)
        reason = str(self._ask(lambda: request.deny_reason) or "")
        is_revoked = reason.startswith(REVOKED)
        return RequestState("revoked" if is_revoked else "denied", reason.removeprefix(REVOKED))

    def run(self, name: str, task: dict[str, Any], timeout: float, on_progress: Progress | None = None) -> dict[str, Any]:
        """Run an approved function as a Syft job and wait for its answer.

        Args: name of the function; task as ``front_desk.hand_over`` takes it; timeout in seconds; on_progress gets
            (step, steps) whenever they change.
        Returns: the ``result`` of ``hand_over``. Raises: the guard's typed refusal, or OwnerFailed.
        """
        job = self._start(name, task)
        deadline, shown = time.monotonic() + timeout, (-1, -1)
        while not job.resolved:
            if time.monotonic() > deadline:
                self._give_up(job)
                raise OwnerFailed(self.owner, f"no answer within {timeout:.0f} s; the same order may be sent again")
            time.sleep(POLL_SECONDS)
            job = self._ask(partial(self._services.job.get, job.id))
            seen = (job.current_iter or 0, job.n_iters or 0)
            if on_progress is not None and seen[1] and seen != shown:
                shown = seen
                on_progress(*seen)
        return self._result(job)

    def close(self) -> None:
        """Close the relay's connections."""
        self.relay.close()

    @property
    def _services(self) -> Any:
        return self._ask(lambda: self._client.api.services)

    def _start(self, name: str, task: dict[str, Any]) -> Any:
        self._ask(self._client.refresh)  # a new function may have arrived since the last look
        self._check_approved(name)
        function = getattr(self._services.code, name)
        job = self._ask(lambda: function(task=task, blocking=False))
        if not hasattr(job, "resolved"):
            raise OwnerFailed(self.owner, f"the datasite did not start a job but said: {job}")
        return job

    def _check_approved(self, name: str) -> None:
        known = [code for code in self._ask(self._services.code.get_all_for_user) if code.service_func_name == name]
        if not known:
            raise NotApproved(f"{self.owner} has no function {name}; submit the plan first")
        status = self._ask(lambda: known[-1].status)
        if status.denied:
            raise RequestDenied(f"{self.owner} denied {name}: {status.first_denial_reason}")
        if not status.approved:
            raise NotApproved(f"{self.owner} has not decided about {name} yet")

    def _result(self, job: Any) -> dict[str, Any]:
        if job.status != JobStatus.COMPLETED:
            raise OwnerFailed(self.owner, getattr(job.result, "message", None) or f"the job ended as {job.status.value}")
        answer = self._ask(lambda: job.result.get())
        if not isinstance(answer, dict) or "ok" not in answer:
            raise OwnerFailed(self.owner, "the job's answer is malformed")
        if not answer["ok"]:
            raise from_wire(dict(answer["error"]))
        result: dict[str, Any] = answer["result"]
        return result

    def _give_up(self, job: Any) -> None:
        try:
            self._ask(job.kill)
        except FlPrivacyError:
            return  # the job ends by itself when the guard does; the timeout is what the caller must hear of

    def _ask(self, call: Callable[[], Any]) -> Any:
        """One exchange with Syft. Raises: ConnectionFailed, OwnerFailed with Syft's public message."""
        try:
            answer = call()
        except OSError:  # every error of the HTTP library that Syft uses is one
            raise ConnectionFailed(f"the datasite of {self.owner} at {self.url} does not answer; is it running?") from None
        except syft.SyftException as problem:
            raise OwnerFailed(self.owner, str(problem.public_message)) from None
        if isinstance(answer, syft.SyftError):
            raise OwnerFailed(self.owner, answer.message)
        return answer


def _submission(code: str, client: Any) -> SubmitUserCode:
    """Source text as Syft submits it: called with a message of the scientist's and a constant of the owner's, it runs once."""
    try:
        function = ast.parse(code).body[0]
    except (SyntaxError, IndexError):
        raise PlanError("the code is not one Python function") from None
    if not isinstance(function, ast.FunctionDef):
        raise PlanError("the code is not one Python function")
    names = [argument.arg for argument in function.args.args]
    policy = syft.MixedInputPolicy(task=dict, site=syft.Constant(val=str(client.id)), client=client)
    return SubmitUserCode(
        code=code,
        func_name=function.name,
        signature=inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]),
        input_policy_type=type(policy),
        input_policy_init_kwargs=policy.init_kwargs,
        output_policy_type=OutputPolicyExecuteCount,
        output_policy_init_kwargs={"limit": EXECUTIONS},
        input_kwargs=names,
    )
