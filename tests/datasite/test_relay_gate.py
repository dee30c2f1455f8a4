"""The relay lets through what an account of this datasite signed just now, once, for a route on the list; nothing else."""

from __future__ import annotations

import hashlib
import http.client
import secrets
import time
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.datasite import limits, relay
from fl_privacy.datasite.limits import Buckets, Limits, Rate
from fl_privacy.datasite.relay import FRESH_SECONDS, Gate
from fl_privacy.errors import (
    BlobMissing,
    ConnectionFailed,
    CredentialsRefused,
    DigestMismatch,
    MessageError,
    OrderRefused,
    SignatureInvalid,
    TooLarge,
    TooManyRequests,
)
from fl_privacy.messages import CloseRequest, RevealRequest, channel_payload, open_signed, public_hex, sign
from fl_privacy.scientist.relay import RelayClient
from tests.datasite.guard_double import GuardDouble, an_order, serve

SCIENTIST, GUEST = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
NOW = 1_800_000_000.0
PATH = "/fl/v1/info"
CLOSING = {"order": sign(an_order(), SCIENTIST), "receipts": (), "total": "f" * 64}


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def a_gate(clock: Clock | None = None) -> Gate:
    return Gate(lambda key: key == public_hex(SCIENTIST), clock or Clock())


def headers(
    key: Ed25519PrivateKey = SCIENTIST, method: str = "GET", path: str = PATH, now: int = int(NOW), nonce: str = ""
) -> dict[str, str]:
    nonce = nonce or secrets.token_hex(16)
    signature = key.sign(channel_payload(method, path, now, nonce)).hex()
    return {"x-fl-key": public_hex(key), "x-fl-time": str(now), "x-fl-nonce": nonce, "x-fl-signature": signature}


def test_a_fresh_signature_passes_and_names_the_caller():
    assert a_gate().check("GET", PATH, headers()) == public_hex(SCIENTIST)


def test_the_same_request_passes_once():
    gate, signed = a_gate(), headers()
    gate.check("GET", PATH, signed)
    with pytest.raises(SignatureInvalid, match="answered before"):
        gate.check("GET", PATH, signed)
    gate.check("GET", PATH, headers())


@given(offset=st.integers(-10 * FRESH_SECONDS, 10 * FRESH_SECONDS), pause=st.integers(0, 10 * FRESH_SECONDS))
def test_no_request_passes_twice_however_long_it_is_kept(offset, pause):
    clock = Clock()
    gate, signed = a_gate(clock), headers(now=int(NOW) + offset)
    passed = 0
    for _ in range(2):
        try:
            gate.check("GET", PATH, signed)
            passed += 1
        except SignatureInvalid:
            pass
        clock.now += pause
    assert passed <= 1
    assert passed == 1 or not 0 <= offset <= FRESH_SECONDS


@pytest.mark.parametrize("age", [FRESH_SECONDS + 1, -FRESH_SECONDS - 1, 10**9])
def test_stale_and_future_requests_are_refused(age):
    clock = Clock()
    gate = a_gate(clock)
    clock.now += 10**6
    with pytest.raises(SignatureInvalid, match="not signed within"):
        gate.check("GET", PATH, headers(now=int(clock.now) - age))


def test_a_request_from_before_the_start_is_refused_because_its_nonce_may_be_forgotten():
    with pytest.raises(SignatureInvalid, match="before this datasite started"):
        a_gate().check("GET", PATH, headers(now=int(NOW) - 5))


def test_a_guest_is_refused_although_the_signature_is_right():
    with pytest.raises(CredentialsRefused, match="no account"):
        a_gate().check("GET", PATH, headers(GUEST))


@pytest.mark.parametrize(("method", "path"), [("PUT", PATH), ("GET", "/fl/v1/ledger"), ("GET", PATH + "/")])
def test_a_signature_is_for_one_method_and_path(method, path):
    with pytest.raises(SignatureInvalid, match="does not verify"):
        a_gate().check(method, path, headers())


def test_another_key_cannot_stand_in():
    signed = headers(GUEST) | {"x-fl-key": public_hex(SCIENTIST)}
    with pytest.raises(SignatureInvalid, match="does not verify"):
        a_gate().check("GET", PATH, signed)


@given(
    name=st.sampled_from(["x-fl-key", "x-fl-time", "x-fl-nonce", "x-fl-signature"]),
    value=st.text(max_size=130) | st.binary(max_size=64).map(bytes.hex),
)
def test_no_changed_header_passes(name, value):
    signed = headers()
    if signed[name] != value:
        with pytest.raises((SignatureInvalid, CredentialsRefused)):
            a_gate().check("GET", PATH, signed | {name: value})


def test_no_header_at_all_is_refused():
    with pytest.raises(SignatureInvalid, match="no signature"):
        a_gate().check("GET", PATH, {})


@pytest.fixture(scope="module")
def url(guard_socket) -> Iterator[str]:
    app = FastAPI()
    app.include_router(relay.router(guard_socket, Gate(lambda key: key == public_hex(SCIENTIST))))
    app.add_middleware(Limits)
    with serve(app, host="127.0.0.1", port=0) as server:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@pytest.fixture
def client(url) -> Iterator[RelayClient]:
    client = RelayClient("alba", url, SCIENTIST)
    yield client
    client.close()


def test_blobs_go_up_and_down_unchanged(client, guard: GuardDouble, tmp_path):
    data = secrets.token_bytes(3_000_000)
    digest = client.put_blob(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert guard.blobs[digest] == data
    client.fetch_blob(digest, tmp_path / "new" / "blob")
    assert (tmp_path / "new" / "blob").read_bytes() == data
    assert (client.bytes_sent, client.bytes_received >= len(data)) == (len(data), True)


def test_a_file_goes_up_unchanged(client, guard: GuardDouble, tmp_path):
    data = secrets.token_bytes(3_000_000)
    (tmp_path / "file").write_bytes(data)
    client.put_file(hashlib.sha256(data).hexdigest(), tmp_path / "file")
    assert guard.blobs[hashlib.sha256(data).hexdigest()] == data
    assert client.bytes_sent == len(data)


def test_the_guards_refusal_arrives_typed(client, tmp_path):
    with pytest.raises(MessageError, match="no such blob"):
        client.fetch_blob("0" * 64, tmp_path / "blob")
    with pytest.raises(OrderRefused, match="nothing to reveal for ffff"):
        client.reveal_self_mask(RevealRequest(**CLOSING, survivors=()))


def test_other_bytes_than_asked_for_are_noticed_and_not_kept(client, guard: GuardDouble, tmp_path):
    guard.blobs["a" * 64] = b"something else"
    (tmp_path / "blob").write_bytes(b"from before")
    with pytest.raises(DigestMismatch, match="alba sent bytes that are not blob"):
        client.fetch_blob("a" * 64, tmp_path / "blob")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"from before"]


def test_a_request_to_close_reaches_the_guard_and_its_word_comes_back(client, guard: GuardDouble):
    request = CloseRequest(**CLOSING)
    assert open_signed(client.close_order(request), CloseRequest, public_hex(guard.key)) == request


def test_a_message_over_its_limit_is_cut_off(client, monkeypatch):
    monkeypatch.setattr(limits, "JSON_BYTES", 100)
    with pytest.raises(TooLarge, match="100 are taken"):
        client.close_order(CloseRequest(**CLOSING))


def test_a_guest_gets_no_further_than_the_relay(url):
    with pytest.raises(CredentialsRefused):
        RelayClient("alba", url, GUEST).info()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/fl/v1/orders"),
        ("GET", "/fl/v1/orders/" + "0" * 64),
        ("PUT", "/fl/v1/orders"),
        ("POST", "/fl/v1/openings"),
        ("GET", "/fl/v1/code/" + "0" * 64),
        ("GET", "/fl/v1/blobs/../info"),
        ("GET", "/fl/v1/blobs/%2e%2e/info"),
        ("GET", "/fl/v1/info?x=1"),
        ("DELETE", "/fl/v1/blobs/" + "0" * 64),
        ("GET", "/fl/v1/status"),
        ("GET", "/fl/v1/closings"),
        ("PUT", "/fl/v1/reveals"),
        ("POST", "/fl/v1/closings/x"),
        ("GET", "/fl/v1/uploads"),
        ("GET", "/fl/v1/uploads/" + "0" * 63),
        ("PUT", "/fl/v1/uploads/" + "0" * 64),
        ("GET", "/fl/v1/models/" + "/".join(["0" * 64] * 3)),
        ("PUT", "/fl/v1/models/" + "/".join(["0" * 64] * 2)),
        ("PUT", "/fl/v1/models/" + "/".join(["0" * 64] * 2 + ["../info"])),
    ],
)
def test_only_listed_routes_exist(url, method, path):
    """Orders and openings must pass through an approved Syft job, so a correct signature does not open a way round it."""
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]))  # leaves the path as it is
    connection.request(method, path, headers=headers(method=method, path=path.partition("?")[0], now=int(time.time())))
    assert connection.getresponse().status in (404, 405)
    connection.close()


def test_a_body_over_the_limit_is_cut_off(client, monkeypatch, guard: GuardDouble):
    monkeypatch.setattr(limits, "BLOB_BYTES", 1000)
    with pytest.raises((TooLarge, ConnectionFailed)):
        client.put_blob(bytes(5_000_000))
    assert hashlib.sha256(bytes(5_000_000)).hexdigest() not in guard.blobs


def test_a_key_that_asks_too_often_waits_and_another_does_not(guard_socket):
    app, keys = FastAPI(), Buckets("key", Rate(per_second=0.01, at_once=2))
    app.include_router(relay.router(guard_socket, Gate(lambda key: True), keys))
    with serve(app, host="127.0.0.1", port=0) as server:
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        busy, other = (RelayClient("alba", url, key) for key in (SCIENTIST, GUEST))
        assert [busy.info(), busy.info()] == [{"owner": "alba"}] * 2
        with pytest.raises(TooManyRequests, match="from this key; try again in 100 s"):
            busy.info()
        assert other.info() == {"owner": "alba"}
        busy.close()
        other.close()


def test_the_guard_is_told_whose_upload_it_is(client, guard: GuardDouble):
    assert guard.uploaders[client.put_blob(b"mine")] == public_hex(SCIENTIST)


def test_the_guard_is_told_who_asks_what_it_holds_and_who_has_a_model_made(client, url, guard: GuardDouble):
    base, step = client.put_blob(b"base "), client.put_blob(b"step")
    model = hashlib.sha256(b"base step").hexdigest()
    assert (client.holds(base), client.holds(model)) == (True, False)
    sent = client.bytes_sent
    client.put_model(model, base, step)
    assert client.holds(model) and guard.blobs[model] == b"base step" and guard.uploaders[model] == public_hex(SCIENTIST)
    assert client.bytes_sent == sent
    with pytest.raises(BlobMissing, match="has not been uploaded"):
        client.put_model("1" * 64, "2" * 64, step)
    guard.uploaders[base] = public_hex(GUEST)
    assert not client.holds(base)
    for ask in (lambda other: other.holds(base), lambda other: other.put_model(model, base, step)):
        with pytest.raises(CredentialsRefused):
            ask(RelayClient("alba", url, GUEST))


def test_a_dead_guard_is_named(tmp_path):
    app = FastAPI()
    app.include_router(relay.router(tmp_path / "nobody.sock", Gate(lambda key: True)))
    with serve(app, host="127.0.0.1", port=0) as server:
        port = server.servers[0].sockets[0].getsockname()[1]
        with pytest.raises(ConnectionFailed, match="guard does not answer"):
            RelayClient("alba", f"http://127.0.0.1:{port}", SCIENTIST).info()


def test_a_dead_datasite_is_named(tmp_path):
    with pytest.raises(ConnectionFailed, match="the datasite of alba at .* does not answer"):
        RelayClient("alba", "http://127.0.0.1:9", SCIENTIST).info()
