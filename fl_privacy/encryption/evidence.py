"""What is kept of a round, and how anybody can check with it that the aggregator added what the owners sent.

updates/<owner>.bin  encrypted updates    request.json  order, receipts, survivor lists, reveals
total.bin            their sum            opened.json   what the owners who opened it signed
values.bin           the opened sum, little-endian float32

Adding ciphertexts needs no key and gives the same bytes to everybody, so a verifier adds them again and compares the result
with the total that the owners signed. The registry that the verifier brings is its root of trust.

Privacy: with BFV every update here is masked, so that the folder may be shown to owners, who hold the HE key. With CKKS it is
not: any owner could decrypt each update, so show such a folder only to people without that key.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_privacy.encryption.agreement import verify_receipts, verify_reveals
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import (
    ChecksumMismatch,
    CohortMismatch,
    DigestMismatch,
    FlPrivacyError,
    HomeError,
    SignatureInvalid,
)
from fl_privacy.messages import Message, OpenedSum, OpenRequest, Purpose, Signed, UpdateReceipt, open_signed
from fl_privacy.round_order import RoundOrder

KEPT_IN: dict[Purpose, str] = {"train": "rounds", "evaluate": "evaluations"}  # the folders in a run's
OPENERS = 2  # owners that must have opened a sum, to the same values, before it counts


class Openings(Message):
    """The signed OpenedSum of every owner that opened one total."""

    opened: tuple[Signed, ...]


@dataclass(frozen=True)
class RoundVerification:
    """What was found true of one round: these owners' ciphertexts make this total, and the openers agree on its values."""

    purpose: Purpose
    round: int
    attempt: int
    order: str  # digest R_t
    cohort: tuple[str, ...]
    total: str  # sha256 of the sum's container
    openers: tuple[str, ...]
    values: str  # sha256 of the opened values
    bytes_added: int


@dataclass(frozen=True)
class Verdict:
    """A round's verification, or why there is none."""

    folder: Path
    found: RoundVerification | None
    error: FlPrivacyError | None


class Evidence:
    """The files of one opened round, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.total_path = folder / "total.bin"
        self.values_path = folder / "values.bin"
        self._request = folder / "request.json"
        self._opened = folder / "opened.json"

    def update_path(self, owner: str) -> Path:
        """Where the encrypted update of an owner lies; whoever writes it makes the folder."""
        return self.folder / "updates" / f"{owner}.bin"

    def write(self, request: OpenRequest, opened: Sequence[Signed]) -> None:
        """Keep what was signed, after updates, total and values are on disk. Raises: HomeError."""
        _write(self._opened, Openings(opened=tuple(opened)).canonical())
        _write(self._request, request.canonical())  # last: a folder that has it is complete

    def read(self) -> tuple[OpenRequest, tuple[Signed, ...]]:
        """The request, and the openers' words. Raises: HomeError (no evidence here), MessageError."""
        return OpenRequest.parse(_read(self._request)), Openings.parse(_read(self._opened)).opened


def verify_round(folder: Path, registry: Registry) -> RoundVerification:
    """Check a round from its evidence alone: all signatures, the addition, and that two owners opened it to the same values.

    Args: registry must come from somewhere else than the folder: an owner's guard, or a file whose fingerprints were compared.
    Raises: HomeError (a file is missing: says how to get it), SignatureInvalid, CohortMismatch, CohortTooSmall, MessageError,
        DigestMismatch (a file or registry is not the one that was signed), CiphertextInvalid, EncodingOverflow,
        ChecksumMismatch (the aggregator added wrongly, or two openers disagree).
    Privacy: needs no secret key and decrypts nothing.
    """
    evidence = Evidence(folder)
    request, opened = evidence.read()
    order = open_signed(request.order, RoundOrder, request.order.signer)
    receipts = verify_receipts(order, request.receipts, registry)
    verify_reveals(request, order, registry)
    bytes_added = _check_addition(evidence, request, order, receipts)
    openers, values = _check_openings(request, order, opened, registry)
    _check_file(evidence.values_path, values, f"the opened values of round {order.round}", "the scientist")
    return RoundVerification(
        order.purpose, order.round, order.attempt, order.digest(), order.cohort, request.total, openers, values, bytes_added
    )


def round_folders(run: Path) -> list[Path]:
    """The folders of a run's rounds, first round first, then those of its evaluations. Raises: HomeError without any."""
    found = [path for kept in KEPT_IN.values() for path in sorted((run / kept).glob("*")) if _is_numbered(path)]
    if not found:
        raise HomeError(f"{run} holds no rounds; give the folder that the scientist trained into (`train --out`)")
    return found


def _is_numbered(path: Path) -> bool:
    return path.is_dir() and re.fullmatch("[0-9]{3,4}", path.name) is not None


def judge(folder: Path, registry: Registry) -> Verdict:
    """``verify_round`` as a value, for a report on all rounds; the folder must be named after the round that it proves."""
    try:
        found = verify_round(folder, registry)
        if (folder.parent.name, int(folder.name)) != (KEPT_IN[found.purpose], found.round):
            what = "round" if found.purpose == "train" else "the evaluation before round"
            raise CohortMismatch(f"{folder} holds the evidence of {what} {found.round}")
    except FlPrivacyError as error:
        return Verdict(folder, None, error)
    return Verdict(folder, found, None)


def _check_addition(evidence: Evidence, request: OpenRequest, order: RoundOrder, receipts: Sequence[UpdateReceipt]) -> int:
    """Add the signed ciphertexts again; returns how many bytes were added."""
    updates = [evidence.update_path(receipt.owner) for receipt in receipts]
    for path, receipt in zip(updates, receipts, strict=True):
        _check_file(path, receipt.ciphertext, f"the encrypted update of {receipt.owner!r}", f"the scientist or {receipt.owner}")
    try:
        with tempfile.TemporaryDirectory(prefix="fl_privacy-") as scratch:
            total = Path(scratch) / "total.bin"
            add_updates(updates, order, total)
            added = _sha256(total)
    except OSError as problem:
        raise HomeError(f"the sum cannot be written ({problem.strerror}); set TMPDIR to a folder with more room") from None
    if added != request.total:
        raise ChecksumMismatch(
            f"round {order.round}: the aggregator added wrongly: the owners' ciphertexts make {added[:16]}…, "
            f"the total that was opened is {request.total[:16]}…"
        )
    return sum(path.stat().st_size for path in updates)


def _check_openings(
    request: OpenRequest, order: RoundOrder, opened: Sequence[Signed], registry: Registry
) -> tuple[tuple[str, ...], str]:
    """Owners that opened this total, at least two, and the digest of the values on which they agree."""
    owners = {registry.card(owner).signing_key: owner for owner in order.cohort}
    found: dict[str, str] = {}
    for signed in opened:
        if signed.signer not in owners:
            raise SignatureInvalid(f"an opening is signed by key {signed.signer[:16]}…, which no owner of the cohort has")
        word = open_signed(signed, OpenedSum, signed.signer)
        if word.owner != owners[signed.signer]:
            raise SignatureInvalid(f"an opening in the name of {word.owner!r} is signed by {owners[signed.signer]!r}")
        if (word.order, word.total) != (order.digest(), request.total):
            raise CohortMismatch(f"{word.owner!r} opened another order or total than that of round {order.round}")
        found[word.owner] = word.values
    if len(found) < OPENERS:
        raise CohortMismatch(f"round {order.round} was opened by {len(found)} owners; {OPENERS} must agree on its values")
    if len(set(found.values())) > 1:
        told = ", ".join(f"{owner} {values[:16]}…" for owner, values in sorted(found.items()))
        raise ChecksumMismatch(f"round {order.round}: the owners who opened the sum disagree on its values ({told})")
    return tuple(sorted(found)), next(iter(found.values()))


def _check_file(path: Path, sha256: str, what: str, holder: str) -> None:
    if not path.is_file():
        raise HomeError(f"{path} is missing: {what}; ask {holder} for blob {sha256}")
    if (found := _sha256(path)) != sha256:
        raise DigestMismatch(f"{path}: {what} has sha256 {found[:16]}…, signed was {sha256[:16]}…")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise HomeError(f"{path} cannot be read ({problem.strerror}): the round was not opened, or was not kept") from None


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, also when the machine stops."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as problem:
        raise HomeError(f"{path} cannot be written: {problem.strerror}") from None
