"""The ASGI application of one datasite: hardened Syft, its execution gate, and the relay, in one process.

Run by ``uvicorn fl_privacy.datasite.application:app --factory`` with two environment variables: ``FL_PRIVACY_DATASITE_HOME``
and ``FL_PRIVACY_GUARD_SOCKET``. Secrets are read from the home, not handed over in the process's environment block, where
they would stay readable for as long as the process lives.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from fl_privacy.datasite import relay
from fl_privacy.datasite.front_desk import GUARD_SOCKET
from fl_privacy.datasite.identity import DatasiteIdentity
from fl_privacy.datasite.limits import Limits
from fl_privacy.errors import HomeError

HOME = "FL_PRIVACY_DATASITE_HOME"
CONSUMERS = 2  # jobs at a time: one order in training, and one short call


def app() -> FastAPI:
    """Build the application. Raises: HomeError when the environment does not name a prepared home."""
    home, guard_socket = _path_from(HOME), _path_from(GUARD_SOCKET)
    identity = DatasiteIdentity.load(home)
    os.environ.update(_syft_settings(home, identity))

    from fl_privacy.datasite import doors, execution, hardening  # these import syft, which reads its settings as it is imported

    hardening.apply()
    execution.install(guard_socket)

    from syft.server.server import ServerRegistry
    from syft.server.uvicorn import app_factory

    application: FastAPI = app_factory()
    server = ServerRegistry.get_all_servers()[0]
    _attach_consumers(server)
    application.include_router(doors.router(server))
    application.include_router(relay.router(guard_socket, relay.Gate(lambda key: _is_scientist(server, key))))
    application.add_middleware(Limits)
    return application


def _path_from(variable: str) -> Path:
    value = os.environ.get(variable, "")
    if not value:
        raise HomeError(f"{variable} is not set; start the datasite with fl_privacy.datasite.launch")
    return Path(value)


def _syft_settings(home: Path, identity: DatasiteIdentity) -> dict[str, str]:
    return {
        "SERVER_UID": identity.server_uid,
        "SERVER_PRIVATE_KEY": identity.server_key,
        "DEFAULT_ROOT_EMAIL": identity.email,
        "DEFAULT_ROOT_PASSWORD": identity.password,
        "DEFAULT_ROOT_USERNAME": f"Owner of {identity.owner}",
        "SYFT_NAME": identity.owner,
        "SYFT_TEMP_ROOT": str(home / "state"),
        "SYFT_CREATE_PRODUCER": "true",
        "SYFT_N_CONSUMERS": str(CONSUMERS),
    }


def _attach_consumers(server: Any) -> None:
    """Give every worker of every pool a consumer; after a restart Syft leaves the default pool without one and jobs hang."""
    attached = {consumer.syft_worker_id for group in server.queue_manager.consumers.values() for consumer in group}
    producer = next(iter(server.queue_manager.producers.values()))
    for pool in server.pool_stash.get_all(credentials=server.verify_key).unwrap():
        for worker in pool.worker_list:
            if worker.object_uid not in attached:
                server.add_consumer_for_service(
                    service_name=pool.name, syft_worker_id=worker.object_uid, address=producer.address
                )


def _is_scientist(server: Any, key: str) -> bool:
    """Whether a public key (hex) belongs to a data scientist's, owner's or administrator's account."""
    from syft.server.credentials import SyftVerifyKey
    from syft.service.user.user_roles import ServiceRole

    role = server.get_role_for_credentials(SyftVerifyKey.from_string(key))
    return role in (ServiceRole.DATA_SCIENTIST, ServiceRole.DATA_OWNER, ServiceRole.ADMIN)
