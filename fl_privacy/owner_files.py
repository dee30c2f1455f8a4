"""What can be read from an owner's folder without its guard, also beside it while it runs: ledger and registry."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from fl_privacy.encryption.keys import Identity
from fl_privacy.encryption.registry import Registry, RegistryRecord, complete_registry, verify_registry
from fl_privacy.errors import HomeError
from fl_privacy.guard.domain import Domain
from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import open_signed, public_hex
from fl_privacy.privacy.entries import LedgerEntry

if TYPE_CHECKING:
    from fl_privacy.privacy.ledger import Ledger


def read_ledger(home: Path) -> tuple[list[LedgerEntry], LedgerStatement]:
    """All entries of an owner's ledger and its statement, verified; works beside a running guard. Raises: LedgerError."""
    with contextlib.closing(_open_ledger(home)) as ledger:
        return ledger.entries(), ledger.statement()


def export_ledger(home: Path, file: Path) -> str:
    """Write the signed entries to a file for an auditor; returns the owner's public key. Raises: LedgerError."""
    with contextlib.closing(_open_ledger(home)) as ledger:
        ledger.export(file)
    return public_hex(Identity.load(home / "guard" / "keys").signing_key)


def import_ledger(home: Path, file: Path, head: str | None = None) -> int:
    """Bring back from an export what a lost or older ledger lacks; returns how many entries. Raises: LedgerError, HomeError.

    Args: head is the latest that another owner or the scientist kept of this ledger, by default the one that the guard wrote
        down last; an export without it is refused.
    """
    from fl_privacy.durable_files import write_atomically
    from fl_privacy.guard.home_ledger import FILE, HEAD
    from fl_privacy.privacy.export_file import Export
    from fl_privacy.privacy.restore import restore

    guard = home / "guard"
    if not guard.is_dir():
        raise HomeError(f"{home} is not an owner's folder; put keys and domain.toml back first")
    if head is None and (guard / HEAD).exists():
        head = (guard / HEAD).read_text(encoding="ascii")
    key, export = Identity.load(guard / "keys").signing_key, Export.read(file)
    added = restore(guard / FILE, key, export, head)
    write_atomically(guard / HEAD, export.verify(public_hex(key)).head)
    return added


def read_registry(home: Path) -> Registry:
    """The registry that this owner signed; works beside a running guard. Raises: KeyMissing before enrolment, HomeError."""
    key = public_hex(Identity.load(home / "guard" / "keys").signing_key)
    return open_signed(_registry_record(home).registry, Registry, key)


def export_registry(home: Path) -> RegistryRecord:
    """The owner's registry with all members' signatures, for auditors: ``encryption.registry.verify_registry``.

    Raises: KeyMissing (not enrolled, or not signed by all; says by whom), HomeError.
    """
    record = _registry_record(home)
    complete_registry(record)
    return record


def read_signed_registry(file: Path, known: str) -> Registry:
    """The registry in a file that ``owner registry`` printed, if all its members signed it.

    Args: known is the public signing key or the fingerprint of one member, from elsewhere than the file.
    Raises: HomeError, KeyMissing, SignatureInvalid, MessageError.
    """
    try:
        return verify_registry(RegistryRecord.parse(file.read_bytes()), known)
    except OSError as problem:
        raise HomeError(f"{file} cannot be read: {problem.strerror}") from None


def _registry_record(home: Path) -> RegistryRecord:
    from fl_privacy.guard.home import read_registry_record

    guard = home / "guard"
    return read_registry_record(guard, Domain.read(guard / "domain.toml").owner)


def _open_ledger(home: Path) -> Ledger:
    from fl_privacy.guard.home_ledger import FILE, open_ledger

    if not (home / "guard" / FILE).exists():
        raise HomeError(f"{home} is not an owner's folder; create one with `fl-privacy owner init`")
    return open_ledger(home / "guard", Identity.load(home / "guard" / "keys").signing_key)
