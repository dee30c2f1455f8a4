"""Signed values: what verifies, what does not, and that errors survive a process boundary."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy import errors
from fl_privacy.errors import MessageError, SignatureInvalid
from fl_privacy.messages import OpenedSum, Signed, TensorSpec, UpdateReceipt, open_signed, public_hex, sign

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
OPENED = OpenedSum(order="0" * 64, owner="bank", total="1" * 64, values="2" * 64, decryption_seconds=0.5)


def test_what_was_signed_opens() -> None:
    assert open_signed(sign(OPENED, KEY), OpenedSum, public_hex(KEY)) == OPENED


def test_a_signature_is_bound_to_the_kind() -> None:
    """The same body under another message type must not verify, or a receipt could pass for something else."""
    signed = sign(OPENED, KEY)
    with pytest.raises(SignatureInvalid, match="expected a signed UpdateReceipt"):
        open_signed(signed, UpdateReceipt, public_hex(KEY))
    with pytest.raises(SignatureInvalid, match="does not verify"):
        open_signed(signed.model_copy(update={"kind": "UpdateReceipt"}), UpdateReceipt, public_hex(KEY))


def test_another_signer_is_refused() -> None:
    other = public_hex(Ed25519PrivateKey.generate())
    with pytest.raises(SignatureInvalid, match="expected"):
        open_signed(sign(OPENED, KEY), OpenedSum, other)
    with pytest.raises(SignatureInvalid, match="does not verify"):
        open_signed(sign(OPENED, KEY).model_copy(update={"signer": other}), OpenedSum, other)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_no_changed_bit_verifies(position: int, bit: int) -> None:
    signed = sign(OPENED, KEY)
    body = bytearray(signed.body.encode())
    body[position % len(body)] ^= 1 << bit
    changed = signed.model_copy(update={"body": body.decode("utf-8", "replace")})
    with pytest.raises(SignatureInvalid):
        open_signed(changed, OpenedSum, public_hex(KEY))


@pytest.mark.parametrize(
    "data", ["", "[]", "null", "{", '{"kind": 1}', '{"name": "x", "shape": [0]}', '{"name": "x", "shape": [1], "y": 2}']
)
def test_malformed_messages_are_typed_errors(data: str) -> None:
    with pytest.raises(MessageError):
        TensorSpec.parse(data)
    with pytest.raises(MessageError):
        Signed.parse(data)


def test_a_refused_value_is_not_echoed() -> None:
    with pytest.raises(MessageError) as caught:
        TensorSpec.parse('{"name": "a secret that should not be repeated", "shape": [1]}')
    assert "secret" not in str(caught.value)


def test_the_golden_digest() -> None:
    """sha256(b"fl_privacy/v1/TensorSpec\\0" + b'{"name":"w","shape":[2,3]}'), by coreutils' sha256sum."""
    assert TensorSpec(name="w", shape=(2, 3)).digest() == GOLDEN


GOLDEN = "0d63ecd44c288e0360d0cd1d44a743bdc89983e8f3cde12330ea6a7a1214ab55"


@pytest.mark.parametrize("kind", [errors.BudgetExceeded, errors.CohortTooSmall, errors.OrderFailed, errors.CiphertextInvalid])
def test_an_error_keeps_its_type_over_the_wire(kind: type[errors.FlPrivacyError]) -> None:
    back = errors.from_wire(errors.to_wire(kind("what, where, what to do")))
    assert type(back) is kind
    assert str(back) == "what, where, what to do"


@pytest.mark.parametrize("wire", [{}, {"error": "SystemExit", "message": "x"}, {"error": "OwnerFailed", "message": "x"}])
def test_an_unknown_error_is_still_an_error(wire: dict[str, str]) -> None:
    assert isinstance(errors.from_wire(wire), errors.FlPrivacyError)
