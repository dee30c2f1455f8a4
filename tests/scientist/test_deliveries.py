"""What an owner has is not sent, what it can make goes as a step, the rest whole: all through relay and guard's service."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI

from fl_privacy.compression.steps import apply_step, make_step
from fl_privacy.datasite import relay as datasite_relay
from fl_privacy.datasite.limits import Limits
from fl_privacy.datasite.relay import Gate
from fl_privacy.errors import CompressionError, DigestMismatch
from fl_privacy.guard import model_steps
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.service import front_app
from fl_privacy.parameters import Parameters, to_bytes
from fl_privacy.scientist.deliveries import Delivery, ModelStep, deliver
from fl_privacy.scientist.relay import RelayClient
from tests.datasite.guard_double import serve
from tests.guard.conftest import make_guard

FIRST: Parameters = {"base": np.arange(20_000, dtype=np.float32), "adapter": np.zeros(10, np.float32)}
NEXT: Parameters = FIRST | {"adapter": np.full(10, 0.5, np.float32)}
BASE, MODEL, STEP = to_bytes(FIRST), to_bytes(NEXT), make_step(FIRST, NEXT)


def name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


BY_STEP = Delivery(MODEL, (ModelStep(name_of(BASE), STEP),))


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guard, str]]:
    """A guard, and the address of the relay in front of it."""
    folder = tmp_path_factory.mktemp("owner")
    guard, app = make_guard(folder, "bank"), FastAPI()
    app.include_router(datasite_relay.router(folder / "front.sock", Gate(lambda key: True)))
    app.add_middleware(Limits)
    with serve(front_app(guard), uds=str(folder / "front.sock")), serve(app, host="127.0.0.1", port=0) as server:
        yield guard, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    guard.close()


@pytest.fixture
def guard(owner: tuple[Guard, str]) -> Guard:
    for path in owner[0].blobs.inbox.iterdir():
        path.unlink()
    return owner[0]


@pytest.fixture
def relay(owner: tuple[Guard, str], guard: Guard) -> Iterator[RelayClient]:
    client = RelayClient("bank", owner[1], Ed25519PrivateKey.generate())
    yield client
    client.close()


def sent_by(relay: RelayClient, delivery: Delivery) -> int:
    """Bytes that a delivery takes."""
    before = relay.bytes_sent
    deliver(relay, delivery)
    return relay.bytes_sent - before


def stored(guard: Guard, content: bytes) -> bool:
    path: Path = guard.blobs.inbox / name_of(content)
    return path.exists() and path.read_bytes() == content


def test_what_the_owner_has_takes_no_bytes(relay: RelayClient, guard: Guard) -> None:
    assert [sent_by(relay, Delivery(BASE)) for _ in range(3)] == [len(BASE), 0, 0]
    assert stored(guard, BASE)


def test_what_the_owner_has_from_somebody_else_is_sent(owner: tuple[Guard, str], relay: RelayClient) -> None:
    other = RelayClient("bank", owner[1], Ed25519PrivateKey.generate())
    assert [sent_by(client, Delivery(BASE)) for client in (relay, other, relay, other)] == [len(BASE), len(BASE), 0, 0]
    other.close()


@pytest.mark.parametrize("bits", [8, 32])
def test_of_a_model_whose_base_the_owner_has_only_the_step_is_sent(relay: RelayClient, guard: Guard, bits: int) -> None:
    change = make_step(FIRST, NEXT, bits)  # type: ignore[arg-type]
    model = to_bytes(apply_step(FIRST, change))
    deliver(relay, Delivery(BASE))
    delivery = Delivery(model, (ModelStep(name_of(BASE), change),))
    assert [sent_by(relay, delivery) for _ in range(2)] == [len(change), 0]
    assert stored(guard, model) and len(change) < len(model) / 100


def test_without_the_base_the_model_is_sent_whole(relay: RelayClient, guard: Guard) -> None:
    assert sent_by(relay, BY_STEP) == len(MODEL)
    assert stored(guard, MODEL)


def test_of_several_steps_the_first_whose_base_is_there_is_sent(relay: RelayClient, guard: Guard) -> None:
    deliver(relay, Delivery(BASE))
    other = ModelStep("0" * 64, b"from a model that this owner never had")
    assert sent_by(relay, Delivery(MODEL, (other, *BY_STEP.steps))) == len(STEP)
    assert stored(guard, MODEL)


def test_a_base_that_makes_room_for_its_step_costs_the_whole_model_and_no_more(
    relay: RelayClient, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(relay, Delivery(BASE))
    put = relay.put_blob

    def crowding(data: bytes) -> str:
        guard.blobs.discard(name_of(BASE))
        return put(data)

    monkeypatch.setattr(relay, "put_blob", crowding)
    assert sent_by(relay, BY_STEP) == len(STEP) + len(MODEL)
    assert stored(guard, MODEL)


def test_a_model_too_large_to_be_made_there_is_sent_whole(
    relay: RelayClient, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(relay, Delivery(BASE))
    monkeypatch.setattr(model_steps, "LARGEST_COMPOSED", 1000)
    assert sent_by(relay, BY_STEP) == len(STEP) + len(MODEL)
    assert stored(guard, MODEL)


def test_a_step_to_another_model_or_none_at_all_is_an_error_and_not_mended_in_silence(relay: RelayClient, guard: Guard) -> None:
    deliver(relay, Delivery(BASE))
    for change, error in ((make_step(FIRST, FIRST), DigestMismatch), (b"no step", CompressionError)):
        with pytest.raises(error):
            deliver(relay, Delivery(MODEL, (ModelStep(name_of(BASE), change),)))
        assert not stored(guard, MODEL)
