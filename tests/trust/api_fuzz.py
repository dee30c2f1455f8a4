"""Random calls to Syft's API: every service path, arguments of the right and of wrong types, and damaged envelopes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from syft.client.api import SignedSyftAPICall, SyftAPICall
from syft.serde.serialize import _serialize as serialize
from syft.server.credentials import SyftSigningKey
from syft.service.action.action_object import Action, ActionObject, ActionType
from syft.service.code.status_service import UserCodeStatusService
from syft.service.code.user_code import ApprovalDecision, UserCode, UserCodeStatus, UserCodeStatusCollection
from syft.service.code.user_code_service import UserCodeService
from syft.service.job.job_stash import Job, JobStatus
from syft.service.queue.queue_service import QueueService
from syft.service.queue.queue_stash import QueueItem
from syft.service.request.request import Request, SubmitRequest, UserCodeStatusChange
from syft.service.request.request_service import RequestService
from syft.service.service import ServiceConfigRegistry
from syft.service.settings.settings import ServerSettings
from syft.service.settings.settings_service import SettingsService
from syft.service.user.user import User, UserCreate, UserUpdate
from syft.service.user.user_roles import ServiceRole
from syft.service.user.user_service import UserService
from syft.store.linked_obj import LinkedObject
from syft.types.uid import UID, LineageID

PATHS = sorted(ServiceConfigRegistry.get_registered_configs())
LINKS = [
    (UserService, User),
    (QueueService, QueueItem),
    (SettingsService, ServerSettings),
    (RequestService, Request),
    (UserCodeService, UserCode),
    (UserCodeStatusService, UserCodeStatusCollection),
]


@dataclass(frozen=True)
class Target:
    """One datasite and what an attacker may know of it: its objects' ids, texts, and a path that must stay empty."""

    url: str
    server_uid: UID
    uids: list[UID]
    texts: list[str]
    forbidden: Path


class Fuzzer:
    """Draws one raw request body after the other."""

    def __init__(self, target: Target, seed: int, allowed: list[str]) -> None:
        """Args: ``allowed`` paths get half of the calls, for they get further than the others."""
        self.target, self.draw, self.allowed = target, random.Random(seed), allowed

    def body(self, key: SyftSigningKey) -> bytes:
        kind = self.draw.random()
        if kind < 0.03:
            return self.draw.randbytes(self.draw.randrange(200))
        if kind < 0.06:  # without a signature, or something else altogether
            return bytes(serialize(self.draw.choice([self.call(), self.value(), SyftSigningKey.generate()]), to_bytes=True))
        signed = self.call().sign(credentials=key)
        if kind < 0.12:
            return self.damaged(bytes(serialize(signed, to_bytes=True)))
        if kind < 0.15:  # rightly signed, but no call, or a damaged one
            made = bytes(serialize(self.draw.choice([self.call, self.value])(), to_bytes=True))
            message = self.draw.choice(
                [self.draw.randbytes(64), self.damaged(made), bytes(serialize(self.value(), to_bytes=True))]
            )
            signature = key.signing_key.sign(message).signature
            signed = SignedSyftAPICall(credentials=key.verify_key, serialized_message=message, signature=signature)
        return bytes(serialize(signed, to_bytes=True))

    def damaged(self, body: bytes) -> bytes:
        spoiled = bytearray(body)
        for _ in range(self.draw.randrange(1, 8)):
            spoiled[self.draw.randrange(len(spoiled))] = self.draw.randrange(256)
        return bytes(spoiled[: self.draw.choice([len(spoiled), self.draw.randrange(len(spoiled))])])

    def call(self) -> SyftAPICall:
        path = self.draw.choice(self.allowed if self.allowed and self.draw.random() < 0.5 else PATHS)
        config = ServiceConfigRegistry.get_registered_configs()[path]
        if self.draw.random() < 0.15:
            path = self.draw.choice([config.private_path, path.upper(), "queue", "metadata", "api", "login", path + "_"])
        kwargs = {}
        for name, parameter in (config.signature.parameters if config.signature else {}).items():
            if name not in ("kwargs", "args", "context") and self.draw.random() < 0.9:
                kwargs[name] = self.typed(parameter.annotation) if self.draw.random() < 0.9 else self.value()
        if self.draw.random() < 0.1:
            kwargs[self.draw.choice(["context", "credentials", "role", "has_permission", "self"])] = self.value()
        args = [self.value() for _ in range(self.draw.choice([0] * 9 + [1, 2]))]
        server = self.target.server_uid if self.draw.random() < 0.95 else UID()
        return SyftAPICall(server_uid=server, path=path, args=args, kwargs=kwargs, blocking=self.draw.random() < 0.7)

    def typed(self, annotation: Any) -> Any:
        """A value of the announced type where there is a recipe for one."""
        fitting = [make for word, make in self._recipes().items() if word in str(annotation)]
        return self.draw.choice(fitting)() if fitting else self.value()

    def value(self) -> Any:
        return self.draw.choice(list(self._recipes().values()))()

    def _recipes(self) -> dict[str, Callable[[], Any]]:
        pick = self.draw.choice
        return {
            "UID": lambda: pick(self.target.uids) if self.draw.random() < 0.9 else UID(),
            "str": self.text,
            "bool": lambda: pick([True, False]),
            "int": lambda: pick([0, 1, -1, 2**31, 10**6]),
            "bytes": lambda: self.draw.randbytes(self.draw.randrange(50)),
            "dict": lambda: {self.text(): pick(self.target.uids)},
            "list": lambda: [self.text(), pick(self.target.uids)],
            "ServiceRole": lambda: pick(list(ServiceRole)),
            "SyftVerifyKey": lambda: SyftSigningKey.generate().verify_key,
            "SyftSigningKey": SyftSigningKey.generate,
            "UserUpdate": lambda: UserUpdate(role=ServiceRole.ADMIN, email="eve@lab.org", mock_execution_permission=True),
            "UserCreate": lambda: UserCreate(
                email="eve@lab.org", name="E", password="Ev3lPass", password_verify="Ev3lPass", role=ServiceRole.ADMIN
            ),
            "LinkedObject": self.link,
            "SubmitRequest": lambda: SubmitRequest(changes=[self.change()]),
            "Change": self.change,
            "ActionObject": self.stored,
            "Action'": self.action,
            "ApprovalDecision": lambda: ApprovalDecision(status=UserCodeStatus.APPROVED),
            "JobStatus": lambda: pick(list(JobStatus)),
            "type": lambda: pick([User, QueueItem, ServerSettings, UserCode, Job]),
        }

    def text(self) -> str:
        hostile = ["", "\0", "../../etc/passwd", str(self.target.forbidden), '\'; DROP TABLE "User"; --', "{7*7}", "x" * 5000]
        return self.draw.choice([*self.target.texts, *hostile])

    def link(self) -> LinkedObject:
        service, kind = self.draw.choice(LINKS)
        uid = self.draw.choice(self.target.uids)
        return LinkedObject(server_uid=self.target.server_uid, service_type=service, object_type=kind, object_uid=uid)

    def change(self) -> UserCodeStatusChange:
        return UserCodeStatusChange(value=UserCodeStatus.APPROVED, linked_obj=self.link(), linked_user_code=self.link())

    def stored(self) -> ActionObject:
        value = self.draw.choice([{"rows": []}, "x", 3, [1.0]])
        made = ActionObject.from_obj(value, id=self.draw.choice([*self.target.uids, UID()]))
        made.syft_action_saved_to_blob_store = False
        return made

    def action(self) -> Action:
        path, op = self.draw.choice([("numpy", "savetxt"), ("builtins", "eval"), ("os", "system"), ("str", "format")])
        known = [LineageID(uid) for uid in self.draw.sample(self.target.uids, 2)]
        kind = self.draw.choice(list(ActionType))
        return Action(path=path, op=op, args=known, kwargs={}, result_id=LineageID(), action_type=kind)


def state(owner: Any) -> dict[str, Any]:
    """All that only the owner may change, as the owner sees it; requests and codes that came later are looked at apart."""
    services = owner.api.services
    settings = services.settings.get()
    return {
        "users": {str(u.id): (u.email, u.role, u.name, u.mock_execution_permission) for u in services.user.get_all()},
        "settings": {name: str(value) for name, value in settings.to_dict().items()},
        "requests": {str(r.id): (r.status, len(r.changes), r.deny_reason or "") for r in services.request.get_all()},
        "codes": {str(c.id): (c.raw_code, c.parsed_code, c.status.approved) for c in services.code.get_all()},
        "datasets": {str(d.id): (d.name, d.summary) for d in services.dataset.get_all()},
        "pools": {str(p.id): (p.name, len(p.worker_list)) for p in services.worker_pool.get_all()},
        "endpoints": sorted(str(e.path) for e in services.api.api_endpoints()),
        "peers": len(services.network.get_all_peers()),
    }


def every_uid(owner: Any) -> list[UID]:
    """Ids of the accounts, requests, codes, status records, jobs, data sets and pools of a datasite."""
    services = owner.api.services
    codes = services.code.get_all()
    found = [
        *services.user.get_all(),
        *services.request.get_all(),
        *codes,
        *services.dataset.get_all(),
        *services.job.get_all(),
    ]
    uids = [each.id for each in [*found, *services.worker_pool.get_all()]] + [owner.id]
    uids += [code.status_link.object_uid for code in codes]
    return uids + [asset.action_id for dataset in services.dataset.get_all() for asset in dataset.asset_list]


def post(session: requests.Session, url: str, body: bytes) -> requests.Response:
    return session.post(f"{url}/api/v2/api_call", data=body, timeout=60)
