"""The gate in front of every execution of submitted code: the owner's guard must have approved exactly this text.

Syft's own approval is not trusted: whoever steals it, or finds a way round it, still runs nothing that the owner did not show
to the guard. The gate runs inside Syft's processes, so it does not hold against code that already executes there.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from syft.service.action import action_service
from syft.service.api.api import TwinAPIEndpoint
from syft.service.code import user_code
from syft.service.code.user_code_service import UserCodeService
from syft.service.policy import policy
from syft.types.errors import SyftException

from fl_privacy.datasite import hardening, jobs
from fl_privacy.errors import FlPrivacyError, NotApproved
from fl_privacy.guard.client import GuardClient
from fl_privacy.template import code_digest

GUARD_TIMEOUT = 10.0  # seconds for one yes or no; a guard that is slower counts as a no
POLICIES = frozenset(
    {policy.MixedInputPolicy, policy.ExactMatch, policy.EmpyInputPolicy}
    | {policy.OutputPolicyExecuteCount, policy.OutputPolicyExecuteOnce}
)


@functools.cache
def install(guard_socket: Path) -> None:
    """Gate this process and every job process that it starts; call before ``app_factory()``.

    Args: guard_socket is the guard's front socket. Raises nothing when the guard is down: then every execution is refused.
    """
    _gate(guard_socket)
    jobs.install(functools.partial(prepare_job, guard_socket))


def prepare_job(guard_socket: Path) -> None:
    """Harden and gate a fresh job process; patches are not inherited by a process that the fork server starts."""
    hardening.apply()
    _gate(guard_socket)


def compiled_from_text(text: str, name: str, unique_name: str) -> str:
    """The source that Syft executes for a text if nothing but the text decides.

    Args: text is one function called ``name``; unique_name is what Syft calls the wrapper around it.
    Raises: NotApproved when the text is anything else than one plain function of that name.
    """
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise NotApproved("the code is not Python source") from None
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef) or body[0].name != name:
        raise NotApproved(f"the code is not one function called {name}")
    if not unique_name.isidentifier():  # it, too, is pasted into the source
        raise NotApproved("the code's internal name is not a name")
    compiled: str = user_code.parse_user_code(
        raw_code=text, func_name=unique_name, original_func_name=name, function_input_kwargs=argument_names(body[0])
    )
    return compiled


def argument_names(function: ast.FunctionDef) -> list[str]:
    """Names of the plain arguments of a function, in order."""
    return [argument.arg for argument in function.args.args]


@functools.cache
def _gate(guard_socket: Path) -> None:
    hardening.around(user_code, "execute_byte_code", functools.partial(_execute_approved, guard_socket))
    action_service.execute_byte_code = user_code.execute_byte_code
    hardening.around(UserCodeService, "_submit", _submit_plain)
    # two more places where stock executes text that somebody sent: policy classes, and endpoints added with the owner's key
    hardening.around(policy, "execute_policy_code", _refuse)
    hardening.around(TwinAPIEndpoint, "exec_code", _refuse)


def _execute_approved(guard_socket: Path, original: Callable[..., Any], code_item: Any, kwargs: Any, context: Any) -> Any:
    try:
        expected = compiled_from_text(code_item.raw_code, code_item.service_func_name, code_item.unique_func_name)
        if code_item.parsed_code != expected:
            raise NotApproved("what would run is not the text that is shown")
        GuardClient(guard_socket, timeout=GUARD_TIMEOUT).code_is_approved(code_digest(code_item.raw_code))
    except NotApproved as refusal:
        raise SyftException(public_message=f"refused by the owner's guard: {refusal}") from None
    except FlPrivacyError as problem:
        raise SyftException(public_message=f"not confirmed by the owner's guard ({type(problem).__name__})") from None
    return original(code_item, kwargs, context)


def _submit_plain(original: Callable[..., Any], self: Any, context: Any, submit_code: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse a submission whose other fields would change what runs.

    Stock pastes ``input_kwargs`` into the compiled source without a look, and executes policy classes that come with the code;
    neither appears in the text that the owner reads.
    """
    if {submit_code.input_policy_type, submit_code.output_policy_type} - POLICIES:
        raise SyftException(public_message="custom policies are not accepted")
    try:
        compiled_from_text(submit_code.code, submit_code.func_name, submit_code.func_name)
    except NotApproved as refusal:
        raise SyftException(public_message=str(refusal)) from None
    if submit_code.input_kwargs != argument_names(ast.parse(submit_code.code).body[0]):
        raise SyftException(public_message="the arguments of the request are not those of its code")
    return original(self, context, submit_code, *args, **kwargs)


def _refuse(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    raise SyftException(public_message="only code that the owner's guard approved is executed here")
