"""Frozen, versioned values that cross a boundary between parties, their canonical bytes, and their signatures.

A message is hostile until ``open_signed`` has returned it: parsing alone proves nothing about who wrote it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fl_privacy.errors import MessageError, SignatureInvalid

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]  # sha256, or a 32-byte public key
OwnerName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Annotation = Literal["label", "tags"]  # what a row may have besides its text
PrivacyUnit = Literal["record", "subject"]  # who may be added or removed: one row, or everything of one person
Purpose = Literal["train", "evaluate"]  # of an order
TensorName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{1,200}$")]


class Message(BaseModel):
    """A frozen value with one canonical form: JSON, keys sorted, no spaces, UTF-8."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def canonical(self) -> bytes:
        """The bytes that are hashed and signed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def digest(self) -> str:
        """sha256 of the canonical bytes, bound to the message's type."""
        return hashlib.sha256(_tagged(type(self).__name__, self.canonical())).hexdigest()

    @classmethod
    def parse(cls, data: bytes | str) -> Self:
        """Read a message from JSON; raises MessageError that names the field."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as problem:
            raise MessageError(f"{cls.__name__}: {first_problem(problem)}") from None


def first_problem(problem: ValidationError) -> str:
    """The first field at fault and why, in one line, without echoing the value."""
    first = problem.errors(include_input=False, include_url=False, include_context=False)[0]
    where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


class Signed(Message):
    """A message with its Ed25519 signature. ``kind`` is the message's class name, ``signer`` a public key in hex."""

    kind: str
    body: str
    signer: Digest
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]

    def body_digest(self) -> str:
        """The digest of the message that was signed, over the very bytes: a later version of its class changes nothing."""
        return hashlib.sha256(_tagged(self.kind, self.body.encode())).hexdigest()


class TensorSpec(Message):
    """Name and shape of one tensor."""

    name: TensorName
    shape: Annotated[tuple[Annotated[int, Field(ge=1, lt=2**31)], ...], Field(max_length=8)]


class UpdateReceipt(Message):
    """An owner's signed word for its encrypted update. Only hashes, public costs and the ledger's state.

    ``self_mask`` commits to the seed of the owner's self-mask (``encryption.agreement.commit``); None where there are no masks.
    The figures of epsilon are those of ``LedgerStatement``; ``noise_multiplier`` follows from plan and declared size.
    """

    order: Digest
    owner: OwnerName
    ciphertext: Digest
    self_mask: Digest | None
    ciphertext_bytes: int
    training_seconds: float
    encryption_seconds: float
    epsilon_spent: float
    epsilon_budget: float
    delta: float
    ledger_head: Digest
    period_days: int | None = None
    epsilon_in_period: float | None = None
    noise_multiplier: Annotated[float, Field(gt=0)] | None = None


class CloseRequest(Message):
    """The scientist asks an owner to agree that these receipts are the whole cohort's and ``total`` is their sum (sha256)."""

    order: Signed
    receipts: tuple[Signed, ...]
    total: Digest


class SurvivorList(Message):
    """An owner's signed word that the order's whole cohort delivered exactly these ciphertexts, in the order of ``cohort``.

    After signing it the owner never gives the same update to another sum. ``heads`` are the owners' ledger heads as their
    receipts tell them: signing the list makes every owner a witness of all ledgers.
    """

    order: Digest
    owner: OwnerName
    ciphertexts: tuple[Digest, ...]
    heads: tuple[Digest, ...]
    total: Digest


class RevealRequest(CloseRequest):
    """The scientist asks an owner for its self-mask, showing that all owners signed the same survivor list."""

    survivors: tuple[Signed, ...]


class SelfMaskReveal(Message):
    """An owner's self-mask seed b_k (hex), signed, revealed only for an order whose whole cohort signed one survivor list."""

    order: Digest
    owner: OwnerName
    seed: Digest


class OpenRequest(RevealRequest):
    """The scientist asks an owner to open one sum: everything above, and every owner's self-mask."""

    reveals: tuple[Signed, ...]


class OpenedSum(Message):
    """An owner's signed word for an opened sum; ``values`` is the sha256 of the little-endian float32 vector."""

    order: Digest
    owner: OwnerName
    total: Digest
    values: Digest
    decryption_seconds: float


class Row(Message):
    """One record of a corpus: private in an owner's rows, public in mock rows and in a scientist's validation text.

    ``label`` is the class of the text; ``tags`` are BIO, one for each character of ``text``; ``subject`` says whose record it
    is, as a number that only the owner's guard knows. What an owner's file does not have is None.
    """

    text: Annotated[str, Field(repr=False)]
    label: Annotated[str | None, Field(repr=False)] = None
    tags: Annotated[tuple[str, ...] | None, Field(repr=False)] = None
    subject: Annotated[int | None, Field(repr=False)] = None

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """What this row has besides its text."""
        return (*(("label",) if self.label is not None else ()), *(("tags",) if self.tags is not None else ()))


class CorpusCard(Message):
    """What an owner tells about its corpus, public by the owner's decision.

    ``corpus`` is a salted digest: it binds the private rows without letting anyone test a guess at them.
    """

    owner: OwnerName
    title: str
    description: str
    corpus: Digest
    declared_size: Annotated[int, Field(ge=1)]
    unit: PrivacyUnit = "record"  # what declared_size counts, and who the ledger's epsilon is for
    annotations: tuple[Annotation, ...] = ()  # what every row has besides its text
    mock_rows: tuple[Row, ...]


Some = TypeVar("Some", bound=Message)


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half of a signing key, in hex."""
    return key.public_key().public_bytes_raw().hex()


def sign(message: Message, key: Ed25519PrivateKey) -> Signed:
    """Sign the canonical bytes of a message, bound to its type."""
    kind, body = type(message).__name__, message.canonical()
    return Signed(kind=kind, body=body.decode(), signer=public_hex(key), signature=key.sign(_tagged(kind, body)).hex())


def open_signed(signed: Signed, kind: type[Some], signer: str) -> Some:
    """Check type, signer and signature, then parse.

    Args: signer is the public key (hex) that must have signed. Raises: SignatureInvalid, MessageError.
    """
    if signed.kind != kind.__name__:
        raise SignatureInvalid(f"expected a signed {kind.__name__}, got {signed.kind[:40]!r}")
    if signed.signer != signer:
        raise SignatureInvalid(f"{kind.__name__} is signed by key {signed.signer[:16]}…, expected {signer[:16]}…")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer)).verify(
            bytes.fromhex(signed.signature), _tagged(signed.kind, signed.body.encode())
        )
    except (InvalidSignature, ValueError):
        raise SignatureInvalid(f"the signature of {kind.__name__} by key {signer[:16]}… does not verify") from None
    return kind.parse(signed.body)


def channel_payload(method: str, path: str, timestamp: int, nonce: str) -> bytes:
    """The bytes that a caller of the blob channel signs for one request; ``timestamp`` in whole Unix seconds."""
    return _tagged("channel", f"{method}\n{path}\n{timestamp}\n{nonce}".encode())


def _tagged(kind: str, body: bytes) -> bytes:
    return b"fl_privacy/v1/" + kind.encode() + b"\0" + body
