"""Fixtures of the front desk's tests: a guard double on a Unix socket, plans that it approved, and one real datasite a file."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.datasite import accounts
from fl_privacy.datasite.launch import Datasite
from fl_privacy.messages import sign
from fl_privacy.scientist.desk import Desk
from fl_privacy.template import code_digest, function_name, render
from tests.datasite.guard_double import GuardDouble, a_plan, serve


@pytest.fixture(scope="module")
def guard() -> GuardDouble:
    return GuardDouble()


@pytest.fixture(scope="module")
def guard_socket(guard: GuardDouble, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("guard") / "front.sock"
    with serve(guard.app(), uds=str(path)):
        yield path


@pytest.fixture
def approved_code(guard: GuardDouble) -> Any:
    """A function that renders a fresh plan and has the guard approve it; returns (code, function name)."""

    def make(name: str, approve: bool = True) -> tuple[str, str]:
        signed = sign(a_plan(name), Ed25519PrivateKey.generate())
        code = render(signed)
        if approve:
            guard.approved.add(code_digest(code))
        return code, function_name(signed)

    return make


@pytest.fixture(scope="module")
def datasite(guard_socket, tmp_path_factory) -> Iterator[Datasite]:
    with Datasite(tmp_path_factory.mktemp("site") / "alba", "alba", guard_socket) as served:
        yield served


@pytest.fixture(scope="module")
def owner(datasite) -> Any:
    return accounts.login_owner(datasite)


@pytest.fixture
def invited(datasite, owner) -> tuple[str, str]:
    email = f"ada-{secrets.token_hex(4)}@lab.example.org"
    return email, accounts.invite_scientist(owner, "Ada", email)


@pytest.fixture
def desk(datasite, invited) -> Iterator[Desk]:
    desk = Desk.login("alba", datasite.url, *invited)
    yield desk
    desk.close()
