"""Fixtures of the front desk's tests: a guard double on a Unix socket, and plans that it approved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.messages import sign
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
