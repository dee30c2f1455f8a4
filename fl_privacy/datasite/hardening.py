"""Who may call what: closes the holes of Syft 0.9.5 that let an account, or no account, pass the owner by.

Syft is the front desk, not the strong room: nothing here is a boundary that the corpus, the keys or the budget depend on (the
guard's process is), but a scientist's account should not be able to approve its own request or take the owner's account. Each
replaced function names the hole; ``tests/trust/test_syft_attacks.py`` runs the attacks. It is a list of holes found by running
them, not a proof that there are no others.

Left open: signed calls carry no nonce, so whoever can read the connection can repeat them (put TLS in front); ``/api`` tells
the names of an account's functions to anybody who knows its public key; code that already executes in a Syft process can undo
all of this.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import sqlalchemy
import syft
import syft.server.server
import syft.server.uvicorn
from sqlalchemy.ext.compiler import compiles
from syft.server.server import Server
from syft.service import response
from syft.service import service as service_module
from syft.service.action.action_object import ActionType
from syft.service.action.action_permissions import ActionObjectPermission, ActionPermission
from syft.service.action.action_service import ActionService
from syft.service.code.status_service import UserCodeStatusService
from syft.service.code.user_code_service import UserCodeService
from syft.service.notification.notification_service import NotificationService
from syft.service.policy.policy import OutputPolicyExecuteCount
from syft.service.request.request_service import RequestService
from syft.service.response import SyftError
from syft.service.user.user_roles import ServiceRole
from syft.service.user.user_service import UserService
from syft.service.user.user_stash import UserStash
from syft.store.document_store_errors import StashException
from syft.types import syft_object
from syft.types.errors import SyftException
from syft.types.result import as_result

from fl_privacy.errors import NotApproved, PrivacyError

SYFT_VERSION = "0.9.5"

# All that a data scientist may call; guests (any key without an account) may call nothing. Without blob_storage.allocate no
# value of 1 MB or more passes through Syft, in or out: large blobs go through the relay, under the guard's eyes.
SCIENTIST_MAY = {
    "action": {"get", "get_mock", "get_pointer", "has_storage_permission", "is_resolved", "set"},
    "blob_storage": {"read"},
    "code": {"call", "get_all", "get_all_for_user", "get_by_id", "request_code_execution"},
    "code_status": {"get_by_uid"},
    "dataset": {"get_all", "search"},
    "job": {"get", "get_all", "get_by_user_code_id", "get_subjobs", "kill"},
    "metadata": {"get_metadata"},
    "notifications": {"resolve_object"},
    "request": {"get_all", "get_all_approved", "get_all_pending", "get_all_rejected", "get_by_uid"},
    "user": {"get_current_user"},
}
OPEN_ROUTES = {f"/api/v2/{name}" for name in ("", "metadata", "metadata_capnp", "api")}  # log-in and calls: ``doors``
SECRETS_IN_ENVIRONMENT = ("SERVER_PRIVATE_KEY", "DEFAULT_ROOT_PASSWORD")
OWNERS = (ServiceRole.DATA_OWNER, ServiceRole.ADMIN)


@functools.cache
def apply() -> None:
    """Harden the Syft of this process, once; call before ``app_factory()``, and in every process that runs a job.

    Raises: PrivacyError when Syft has another version than the one whose holes are known.
    """
    if syft.__version__ != SYFT_VERSION:
        raise PrivacyError(f"the hardening is for Syft {SYFT_VERSION}, not {syft.__version__}; review it before upgrading")
    _restrict_paths()
    around(Server, "handle_api_call_with_unsigned_result", _answer)
    around(Server, "add_api_call_to_queue", _queue_only_code)
    around(NotificationService, "resolve_object", _resolve_own_requests)
    around(ActionService, "execute", _no_eager_execution)
    service_module.UserLibConfigRegistry.from_user = classmethod(lambda cls, credentials: cls({}))  # no numpy.savetxt and kin
    around(OutputPolicyExecuteCount, "is_valid", _count_executions)
    _protect_accounts()
    _close_web()
    for module in (
        syft.server.server,
        response,
    ):  # they print the database's password, and a traceback for every bad call
        vars(module)["print"] = _print_nothing
    _walk_no_bytes()
    _keep_ids_text()
    for name in SECRETS_IN_ENVIRONMENT:  # Syft has read them by now; jobs must not inherit them
        os.environ.pop(name, None)


def around(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by ``replacement(original, *args, **kwargs)``; an unknown name is an error, not a silent miss."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    setattr(owner, name, replaced)


def _restrict_paths() -> None:
    for path, config in service_module.ServiceConfigRegistry.get_registered_configs().items():
        roles = [role for role in config.roles if role in OWNERS]
        service, _, method = path.partition(".")
        if method in SCIENTIST_MAY.get(service, ()) and ServiceRole.DATA_SCIENTIST in config.roles:
            roles.append(ServiceRole.DATA_SCIENTIST)
        config.roles = roles


def _answer(original: Callable[..., Any], self: Server, api_call: Any, *args: Any, **kwargs: Any) -> Any:
    """Queue items carry the server's own key (hole 2); calls for another server would be forwarded with this one's name."""
    try:
        if api_call.message.server_uid != self.id:
            raise SyftException(public_message="this datasite forwards no calls")
        if api_call.message.path == "queue":
            raise SyftException(public_message="queue items are not shown")
        result = original(self, api_call, *args, **kwargs)
    except SyftException as refusal:
        return SyftError(message=refusal.public_message)
    if isinstance(result, SyftError) and self.get_role_for_credentials(api_call.credentials) not in OWNERS:
        result.message = result.message.partition("Traceback (most recent call last)")[0]
    return result


def _queue_only_code(original: Callable[..., Any], self: Server, api_call: Any, parent_job_id: Any = None) -> Any:
    """Stock checks no role for calls with ``blocking=False``, so a scientist could apply its own request (hole 1)."""
    path = getattr(api_call, "message", api_call).path
    role = self.get_role_for_credentials(api_call.credentials)
    if path != "code.call" or path not in service_module.UserServiceConfigRegistry.from_role(role):
        raise SyftException(public_message=f"{path} cannot be queued by a {role.name.lower()}")
    return original(self, api_call, parent_job_id)


def _resolve_own_requests(original: Callable[..., Any], self: Any, context: Any, linked_obj: Any, **kwargs: Any) -> Any:
    """A link may name any store: queue items with the root key (hole 2), users with key and password hash (hole 7)."""
    if context.role not in OWNERS and linked_obj.service_type not in (UserCodeService, UserCodeStatusService, RequestService):
        raise SyftException(public_message="only requests, code and its status can be looked up")
    return original(self, context, linked_obj, **kwargs)


def _no_eager_execution(original: Callable[..., Any], self: Any, context: Any, action: Any, **kwargs: Any) -> Any:
    """Remote method calls on server objects, library calls that write files, plans (hole 6)."""
    if context.role not in OWNERS and action.action_type != ActionType.SYFTFUNCTION:
        raise SyftException(public_message="remote eager execution is disabled on this datasite")
    return original(self, context, action, **kwargs)


def _count_executions(original: Callable[..., bool], self: Any, context: Any = None) -> bool:
    """Stock returns False when the limit is reached, and nobody looks (hole 4).

    Raises: NotApproved; a SyftException would be taken for "answer with the last result", which belongs to another input.
    """
    valid = original(self, context)
    if context is not None and not valid:
        raise NotApproved(f"this code may run {self.limit} times and has; ask for a new approval")
    return valid


def _protect_accounts() -> None:
    @as_result(StashException)  # type: ignore[untyped-decorator]
    def add_user(self: UserService, credentials: Any, user: Any) -> Any:
        # stock lets everybody read the whole record: signing key, password hash (hole 7)
        own = ActionObjectPermission(uid=user.id, permission=ActionPermission.READ, credentials=user.verify_key)
        return self.stash.set(credentials=credentials, obj=user, add_permissions=[own]).unwrap()

    def refuse_to_register(self: UserService, context: Any, new_user: Any) -> Any:
        raise SyftException(public_message="accounts are created by the owner only")  # hole 8: the applicant names its role

    UserService._add_user = add_user
    UserService.register = refuse_to_register
    around(UserService, "get_current_user", _without_mock_execution)
    for method in ("set", "update"):
        around(UserStash, method, _store_user)


def _without_mock_execution(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The permission runs unapproved code (hole 9); where Syft looks for it, it finds none, whatever the database says."""
    view = original(*args, **kwargs)
    view.mock_execution_permission = False
    return view


def _store_user(original: Callable[..., Any], self: UserStash, credentials: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
    if obj.mock_execution_permission is True:
        raise SyftException(public_message="the mock execution permission runs unapproved code and cannot be granted")
    if obj.role != ServiceRole.DATA_SCIENTIST and obj.verify_key != self.root_verify_key:
        raise SyftException(public_message="every account but the owner's is a data scientist's")
    return original(self, credentials, obj, *args, **kwargs)


def _close_web() -> None:
    """Leave only the routes that a client needs: no sign-up, password reset, proxy streams, API browser or foreign origins."""

    def closed(original: Callable[[], Any]) -> Any:
        app = original()
        app.router.routes[:] = [route for route in app.router.routes if route.path in OPEN_ROUTES]
        app.user_middleware[:] = [layer for layer in app.user_middleware if layer.cls is not syft.server.uvicorn.CORSMiddleware]
        os.environ.pop("SYFT_DB_URL", None)
        return app

    around(syft.server.uvicorn, "app_factory", closed)
    syft.server.uvicorn.logger.setLevel(logging.WARNING)  # it logs all settings, the database's password among them


def _print_nothing(*values: Any, **options: Any) -> None:
    """Stands in for ``print`` where Syft would fill the log with what callers send."""


def _walk_no_bytes() -> None:
    """Stock visits every byte of a result in a Python loop: 120 MB block a thread for more than a minute."""

    def attach(original: Callable[..., None], result: Any, attr_dict: Any) -> None:
        if not isinstance(result, (bytes, bytearray, memoryview, str)):
            original(result, attr_dict)

    around(syft_object, "attach_attribute_to_syft_object", attach)
    service_module.attach_attribute_to_syft_object = syft_object.attach_attribute_to_syft_object


def _keep_ids_text() -> None:
    """Stock gives ids the column type UUID, in which SQLite keeps ``12...8e34`` or 32 digits as a number, one id in a million.

    Such an object, and every list that it is in, cannot be read any more.
    """

    @compiles(sqlalchemy.UUID, "sqlite")  # type: ignore[no-untyped-call, untyped-decorator]
    def column_type(*_: Any, **options: Any) -> str:
        return "CHAR(32)"
