"""Nothing that a stranger sends is decoded beyond a key, a signature and a string of bytes, and that not by a C++ library."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from syft.client.api import SignedSyftAPICall, SyftAPICall
from syft.serde import recursive
from syft.serde.deserialize import _deserialize as deserialize
from syft.serde.serialize import _serialize as serialize
from syft.server.credentials import SyftSigningKey
from syft.types.uid import UID

from fl_privacy.datasite.envelope import read_envelope
from fl_privacy.errors import MessageError, SignatureInvalid
from tests.datasite.crafted import left_open, long_bytes

KEY = SyftSigningKey.generate()
TEXTS = (b"SignedSyftAPICall", b"credentials", b"serialized_message", b"signature")
INNER = (b"SyftVerifyKey", b"verify_key", b"nacl_verify_key", b"bytes")


def a_call(message: Any = b"not decoded here", signature: Any = None) -> bytes:
    signature = KEY.signing_key.sign(message).signature if signature is None else signature
    call = SignedSyftAPICall.model_construct(credentials=KEY.verify_key, serialized_message=message, signature=signature)
    return bytes(serialize(call, to_bytes=True))


@pytest.fixture(autouse=True)
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recursive, "rs_bytes2object", lambda *_: pytest.fail("decoded by Syft"))


def test_a_signed_message_is_read_without_being_decoded() -> None:
    assert read_envelope(a_call()).serialized_message == b"not decoded here"


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 6000, 7000, 8100, 8192, 100_001, 3_000_000])
def test_an_envelope_of_any_size_is_read_as_syft_would(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    body = a_call(random.Random(size).randbytes(size))
    read = read_envelope(body)
    monkeypatch.undo()
    decoded = deserialize(body, from_bytes=True)
    assert (read.credentials, read.serialized_message, read.signature) == (
        decoded.credentials,
        decoded.serialized_message,
        decoded.signature,
    )


def test_a_signature_that_does_not_hold_is_refused() -> None:
    with pytest.raises(SignatureInvalid):
        read_envelope(a_call(signature=bytes(64)))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"x" * 100,
        struct.pack("<I", 2**32 - 1) + bytes(100),
        bytes(serialize(KEY, to_bytes=True)),
        bytes(serialize(SyftAPICall(server_uid=UID(), path="metadata", args=[], kwargs={}), to_bytes=True)),
        a_call(signature=b""),
        a_call(signature=b"")[:-9],
        a_call() + bytes(8),
        a_call(message={"a": UID()}, signature=bytes(64)),
        a_call(signature=[UID()]),
        long_bytes(100_000, bytes(1024)),
        a_call().replace(b"bytes\0", b"bytez\0", 1),
        *(left_open(a_call(), text) for text in (*TEXTS, *INNER)),
    ],
)
def test_anything_else_is_refused_before_syft_decodes_it(blob: bytes) -> None:
    with pytest.raises(MessageError):
        read_envelope(blob)


def test_values_that_share_their_bytes_are_not_multiplied() -> None:
    """A message of 16 MB could otherwise name the same bytes two million times."""
    body = bytearray(a_call())
    names = struct.unpack_from("<I", body, 8 + 2 * 8 + 4)[0]  # the list of the fields' names
    struct.pack_into("<I", body, 8 + 2 * 8 + 4, (4 << 3) | (names & 7))
    with pytest.raises(MessageError):
        read_envelope(bytes(body))


def test_damaged_envelopes_end_in_typed_errors_or_are_the_same_call() -> None:
    draw, body = random.Random(2), a_call()
    told = set()
    for _ in range(5000):
        damaged = bytearray(body)
        for _ in range(draw.randrange(1, 8)):
            damaged[draw.randrange(len(damaged))] = draw.choice([0, 1, 3, 255, draw.randrange(256)])
        try:
            assert read_envelope(bytes(damaged)).serialized_message == b"not decoded here"
        except (MessageError, SignatureInvalid) as refusal:
            told.add(type(refusal))
    assert told == {MessageError, SignatureInvalid}
