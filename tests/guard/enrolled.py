"""Guards that only enrol and sum, without corpus or plan, and a scientist's channel to them over their real front routes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.keys import key_name
from fl_privacy.encryption.packing import choose_encoding
from fl_privacy.encryption.secret_sum import open_sum, protect_update
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.service import front_app
from fl_privacy.messages import Signed, TensorSpec
from fl_privacy.parameters import Vector
from fl_privacy.round_order import RoundOrder
from fl_privacy.scientist.relay import RelayClient
from tests.builders import OWNERS, write_domain

SOME_DIGEST = "5a" * 32
SIZE = 50


def new_guard(folder: Path, owner: str, allow_ckks: bool = False) -> Guard:
    """A guard that has enrolled with nobody."""
    file = write_domain(folder, owner)
    file.write_text(file.read_text() + f"allow_ckks = {str(allow_ckks).lower()}\n")
    return Guard(GuardHome.create(folder / owner, Domain.read(file)))


@contextmanager
def new_guards(folder: Path) -> Iterator[dict[str, Guard]]:
    """One such guard for each of ``OWNERS``."""
    made = {owner: new_guard(folder, owner) for owner in OWNERS}
    yield made
    for guard in made.values():
        guard.close()


def reopened(guard: Guard) -> Guard:
    """The same home in a new process, as after a crash."""
    guard.close()
    return Guard(GuardHome(guard.home.folder))


def cards(guards: Mapping[str, Guard]) -> tuple[Signed, ...]:
    return tuple(guard.home.identity.card(owner) for owner, guard in guards.items())


def channel(owner: str, guard: Guard) -> RelayClient:
    """The scientist's client, connected to a guard's front routes without a datasite in between."""
    site = FastAPI()
    site.mount("/fl", front_app(guard))
    relay = RelayClient(owner, "http://testserver", Ed25519PrivateKey.generate())
    relay._http = TestClient(site)
    return relay


def channels(guards: Mapping[str, Guard]) -> dict[str, RelayClient]:
    return {owner: channel(owner, guard) for owner, guard in guards.items()}


def order_of(guards: Mapping[str, Guard], **changes: object) -> RoundOrder:
    """An order for these guards under their registry and BFV key."""
    home = next(iter(guards.values())).home
    fields = {
        "plan": SOME_DIGEST,
        "code": SOME_DIGEST,
        "registry": home.registry.digest(),
        "key": key_name(home.secret_key("bfv")),
        "round": 0,
        "attempt": 0,
        "model": SOME_DIGEST,
        "tensors": (TensorSpec(name="w", shape=(SIZE,)),),
        "cohort": tuple(sorted(guards)),
        "weights": (1,) * len(guards),
        "encoding": choose_encoding(len(guards), 8, 0.05),
    }
    return RoundOrder.model_validate(fields | changes)


def seed_of(owner: str) -> bytes:
    return owner.encode().ljust(32, b"\1")


def update_of(owner: str) -> Vector:
    return np.random.default_rng(list(owner.encode())).uniform(-0.05, 0.05, SIZE).astype(np.float32)


def protected(guard: Guard, order: RoundOrder) -> bytes:
    """One owner's encrypted update."""
    home, file = guard.home, io.BytesIO()
    key = home.secret_key("bfv")
    protect_update(update_of(home.owner), order, home.owner, home.identity, home.registry, key, seed_of(home.owner), file)
    return file.getvalue()


def total_of(updates: Sequence[bytes], order: RoundOrder, folder: Path) -> bytes:
    """What the scientist adds up."""
    paths = []
    for index, update in enumerate(updates):
        paths.append(folder / f"update-{index}")
        paths[-1].write_bytes(update)
    add_updates(paths, order, folder / "total")
    return (folder / "total").read_bytes()


def opened(guard: Guard, total: bytes, order: RoundOrder) -> Vector:
    """The sum that a guard's key opens."""
    return open_sum(io.BytesIO(total), order, guard.home.secret_key("bfv"), [seed_of(owner) for owner in order.cohort])


def expected_mean(order: RoundOrder) -> Vector:
    """The mean of the updates (equal weights)."""
    mean: Vector = np.mean([update_of(owner) for owner in order.cohort], axis=0)
    return mean
