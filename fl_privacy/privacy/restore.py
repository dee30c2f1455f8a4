"""Bring a ledger back from its export, after a disk was lost or an older copy was put back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.errors import LedgerTampered
from fl_privacy.messages import public_hex
from fl_privacy.privacy.chain import must_contain, open_entry
from fl_privacy.privacy.entry_file import EntryFile
from fl_privacy.privacy.export_file import Export


def restore(path: Path, signing_key: Ed25519PrivateKey, export: Export, seen: str | None = None) -> int:
    """Add what a missing or older ledger file lacks, all at once or not at all; returns how many entries were added.

    Privacy: spends that the export does not hold are forgotten, and epsilon is then told too low. ``seen``, the latest head
        that another owner or the scientist kept, lets an export that is too old be noticed.
    Raises: LedgerTampered that names the entry (the export is broken or too old, or the file at ``path`` is no part of it),
        LedgerError.
    """
    owner_key = public_hex(signing_key)
    verified = export.verify(owner_key)
    if seen is not None:
        must_contain(verified, seen)
    file = EntryFile.touch(path)
    try:
        with file.writing():
            if not file.version:
                file.make_table()
            present = file.lines()
            _must_begin(export.lines, present, owner_key)
            for number in range(len(present), len(export.lines)):
                file.add(number, export.lines[number])
    finally:
        file.close()
    return len(export.lines) - len(present)


def _must_begin(lines: Sequence[str], present: Sequence[str], owner_key: str) -> None:
    for number, line in enumerate(present):
        if number == len(lines):
            raise LedgerTampered(f"entry {number} is missing in the export, which is older than the ledger here", number)
        if open_entry(line, number, owner_key).digest != open_entry(lines[number], number, owner_key).digest:
            raise LedgerTampered(f"entry {number} is another in the export than in the ledger here: one was forked", number)
