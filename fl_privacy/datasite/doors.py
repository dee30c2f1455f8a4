"""The two doors of Syft through which anybody may knock, rebuilt: log-in and signed calls.

Stock decodes whatever arrives before it looks at the signature, in its own process, which a damaged message ends; it lets every
key call, tells wrong e-mails from wrong passwords by the time that it takes, and never tires of guesses.
"""

from __future__ import annotations

import functools
import json
import logging
from typing import Any

import anyio
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from syft.client.api import SyftAPICall, SyftAPIData
from syft.serde.serialize import _serialize as serialize
from syft.server.credentials import SyftVerifyKey
from syft.service.response import SyftError
from syft.service.user.user import UserPrivateKey, check_pwd, salt_and_hash_password
from syft.service.user.user_roles import ServiceRole
from syft.types.errors import SyftException

from fl_privacy.datasite.envelope import read_envelope
from fl_privacy.datasite.limits import PER_KEY, Buckets, LoginThrottle, address_of, refuse
from fl_privacy.datasite.taster import Taster
from fl_privacy.errors import FlPrivacyError, MessageError

LOGINS_AT_ONCE = 2  # a password takes a core for a quarter of a second
LONGEST_PASSWORD = 72  # bytes; bcrypt knows no more
_log = logging.getLogger("fl_privacy.datasite")
_log.setLevel(logging.WARNING)


def router(server: Any, keys: Buckets | None = None, throttle: LoginThrottle | None = None) -> APIRouter:
    """``/api/v2/login`` and ``/api/v2/api_call``, to be mounted in place of Syft's own.

    Args: server is Syft's; keys and throttle count calls by key and wrong log-ins.
    """
    counted, logins, routes = keys or Buckets("key", PER_KEY), throttle or LoginThrottle(), APIRouter()
    at_once, taster = anyio.CapacityLimiter(LOGINS_AT_ONCE), Taster(functools.partial(_name, server))

    @routes.post("/api/v2/login", include_in_schema=False)
    async def login(request: Request) -> Response:
        address = address_of(request.scope)
        try:
            email, password = _credentials(await request.body())
            logins.check(address, email)
        except FlPrivacyError as refusal:
            return refuse(refusal)
        account = await anyio.to_thread.run_sync(_account, server, email, password, limiter=at_once)
        if account is None:
            tries = logins.wrong(address, email)
            _log.warning("log-in refused, wrong try %d from %s", tries, address)
            return _octets(SyftError(message="wrong e-mail or password"))
        logins.right(address, email)
        return _octets(account)

    @routes.post("/api/v2/api_call", include_in_schema=False)
    async def api_call(request: Request) -> Response:
        blob = await request.body()
        try:
            return _octets(await run_in_threadpool(_answer, server, counted, taster, blob))
        except FlPrivacyError as refusal:
            return refuse(refusal)

    return routes


def _answer(server: Any, counted: Buckets, taster: Taster, blob: bytes) -> Any:
    call = read_envelope(blob)
    try:
        if server.get_role_for_credentials(call.credentials) == ServiceRole.GUEST:
            return _refusal(server, "this key belongs to no account of this datasite and has no access to it")
        counted.take(call.credentials.verify)
        taster.taste(call.serialized_message, call.credentials.verify)
        if not isinstance(call.message, SyftAPICall):
            raise MessageError("the signed message is no call")
        return server.handle_api_call(api_call=call)
    except FlPrivacyError:
        raise
    except Exception as problem:  # noqa: BLE001 - whatever a crafted message does to Syft; its text may quote private state
        _log.warning("a call could not be answered (%s)", type(problem).__name__)
        return _refusal(server, "the call could not be answered")


def _credentials(body: bytes) -> tuple[str, str]:
    try:
        fields = json.loads(body)
        email, password = fields["email"], fields["password"]
        if not isinstance(email, str) or not isinstance(password, str):
            raise TypeError
        (email + password).encode()  # JSON can hold what is no text
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MessageError("a log-in is an object with the texts email and password") from None
    return email, password


def _account(server: Any, email: str, password: str) -> UserPrivateKey | None:
    """The account if the password is right, in the same time for unknown e-mails and wrong passwords."""
    users = server.services.user
    try:
        user = users.stash.get_by_email(credentials=users.root_verify_key, email=email).unwrap()
    except SyftException:
        user = None
    fits = len(password.encode()) <= LONGEST_PASSWORD and "\0" not in password
    right = check_pwd(password if fits else "", _nobodys_hash() if user is None else user.hashed_password)
    return user.to(UserPrivateKey) if user is not None and fits and right else None


def _name(server: Any, key: str) -> str:
    """How the owner called an account; of the key (hex) only the beginning."""
    users = server.services.user
    account = users.stash.get_by_verify_key(
        credentials=users.root_verify_key, verify_key=SyftVerifyKey.from_string(key)
    ).unwrap()
    return f"{account.name!r} (key {key[:12]})"


@functools.cache
def _nobodys_hash() -> str:
    hashed: str = salt_and_hash_password("", 12)[1]
    return hashed


def _refusal(server: Any, told: str) -> Any:
    return SyftAPIData(data=SyftError(message=told)).sign(server.signing_key)


def _octets(value: Any) -> Response:
    return Response(serialize(value, to_bytes=True), media_type="application/octet-stream")
