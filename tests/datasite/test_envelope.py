"""Nothing that a stranger sends is decoded beyond a key, a signature and a string of bytes."""

from __future__ import annotations

from typing import Any

import pytest
from syft.client.api import SignedSyftAPICall, SyftAPICall
from syft.serde.serialize import _serialize as serialize
from syft.server.credentials import SyftSigningKey
from syft.types.uid import UID

from fl_privacy.datasite import doors
from fl_privacy.datasite.doors import read_envelope
from fl_privacy.errors import MessageError, SignatureInvalid

KEY = SyftSigningKey.generate()


def a_call(message: Any = b"not decoded here", signature: Any = None) -> bytes:
    signature = KEY.signing_key.sign(message).signature if signature is None else signature
    call = SignedSyftAPICall.model_construct(credentials=KEY.verify_key, serialized_message=message, signature=signature)
    return bytes(serialize(call, to_bytes=True))


def test_a_signed_message_is_read_without_being_decoded() -> None:
    assert read_envelope(a_call()).serialized_message == b"not decoded here"


def test_a_signature_that_does_not_hold_is_refused() -> None:
    with pytest.raises(SignatureInvalid):
        read_envelope(a_call(signature=bytes(64)))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"x" * 100,
        bytes(serialize(KEY, to_bytes=True)),
        bytes(serialize(SyftAPICall(server_uid=UID(), path="metadata", args=[], kwargs={}), to_bytes=True)),
        a_call(signature=b"")[:-9],
        a_call(message={"a": UID()}, signature=bytes(64)),
        a_call(signature=[UID()]),
    ],
)
def test_anything_else_is_refused_before_syft_decodes_it(blob: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "deserialize", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(MessageError):
        read_envelope(blob)
