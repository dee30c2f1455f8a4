"""A ledger outside its database: a file of JSON lines, a signed header and then every signed entry.

The header says how many entries there are, so whoever lacks the owner's key cannot cut any off the end. The owner can: against
that only heads help which others have kept. Files of format 1 have no header.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from fl_privacy.errors import LedgerError, LedgerTampered, MessageError
from fl_privacy.messages import Digest, Message, OwnerName, Signed, open_signed, public_hex, sign
from fl_privacy.privacy.chain import VerifiedLedger, verify, verify_prefix
from fl_privacy.privacy.entries import LedgerEntry, Opening


class LedgerExport(Message):
    """The header of an export, signed by the owner: whose entries follow, and which is the last."""

    format: Literal[2] = 2
    owner: OwnerName
    public_key: Digest
    entries: Annotated[int, Field(ge=1)]
    head: Digest


@dataclass(frozen=True)
class Export:
    """An export that was read and not yet verified. ``header`` is None in files of format 1."""

    header: Signed | None
    lines: tuple[str, ...]
    source: str = "export"

    @classmethod
    def read(cls, source: Path | str | Iterable[str]) -> Self:
        """Args: a file, or its lines. Raises: LedgerError when the file cannot be read."""
        name = "export"
        if isinstance(source, str | Path):
            name = str(source)
            try:
                source = lines_of(Path(source))
            except (OSError, UnicodeDecodeError) as problem:
                raise LedgerError(f"{name} cannot be read as a ledger export: {type(problem).__name__}") from None
        lines = tuple(source)
        header = _signed(lines[0]) if lines else None
        if header is None or header.kind != LedgerExport.__name__:
            return cls(None, lines, name)
        return cls(header, lines[1:], name)

    @property
    def signer(self) -> str | None:
        """The public key (hex) that the file itself names; anybody can write a file with a key of its own."""
        first = self.header or (_signed(self.lines[0]) if self.lines else None)
        return first.signer if first else None

    @property
    def owner(self) -> str | None:
        """The owner that the file itself names."""
        try:
            if self.header:
                return LedgerExport.parse(self.header.body).owner
            opening = LedgerEntry.parse(Signed.parse(self.lines[0]).body).event if self.lines else None
        except MessageError:
            return None
        return opening.owner if isinstance(opening, Opening) else None

    def verify(self, owner_key: str) -> VerifiedLedger:
        """Check chain, signatures, meaning and header. Raises: LedgerTampered that names the entry or the header."""
        ledger = verify(self.lines, owner_key)
        if fault := self._header_fault(ledger, owner_key):
            raise fault
        return ledger

    def verify_prefix(self, owner_key: str) -> tuple[VerifiedLedger, LedgerTampered | None]:
        """As much as can be verified, and what is wrong with the rest."""
        ledger, fault = verify_prefix(self.lines, owner_key)
        return ledger, fault or self._header_fault(ledger, owner_key)

    def _header_fault(self, ledger: VerifiedLedger, owner_key: str) -> LedgerTampered | None:
        if self.header is None:
            return None
        try:
            header = open_signed(self.header, LedgerExport, owner_key)
        except MessageError as problem:
            return LedgerTampered(f"the header of the export was edited, or signed by another key: {problem}")
        count = len(ledger.entries)
        if header.entries != count:
            what = "is missing: the export was cut short" if header.entries > count else "was added to the export"
            return LedgerTampered(f"entry {min(count, header.entries)} {what}", min(count, header.entries))
        if (header.head, header.owner) != (ledger.head, ledger.opening.owner):
            return LedgerTampered(f"entry {count - 1} is not the one that the header names: the ledger was forked", count - 1)
        return None


def export_lines(lines: Sequence[str], key: Ed25519PrivateKey) -> list[str]:
    """Header and entries of a verified ledger, one line each."""
    ledger = verify(lines, public_hex(key))
    header = LedgerExport(owner=ledger.opening.owner, public_key=public_hex(key), entries=len(ledger.entries), head=ledger.head)
    return [sign(header, key).canonical().decode(), *lines]


def lines_of(file: Path) -> list[str]:
    """The lines of a JSONL file; ``str.splitlines`` would also cut at line separators that JSON texts may hold.

    Raises: OSError, UnicodeDecodeError.
    """
    text = file.read_text(encoding="utf-8")
    return text.removesuffix("\n").split("\n") if text else []


def _signed(line: str) -> Signed | None:
    try:
        return Signed.parse(line)
    except MessageError:
        return None
