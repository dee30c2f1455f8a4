"""What is done with an owner's folder without its guard.

Ledger and registry are read also beside a running guard; a corpus or an earlier ledger is brought in, and an owner's own model
made, only while none runs.
"""

from __future__ import annotations

import contextlib
from collections import Counter
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
    from fl_privacy.messages import CorpusCard
    from fl_privacy.privacy.ledger import Ledger


def add_corpus(
    home: Path,
    file: Path,
    mock: Path | None = None,
    *,
    text: str = "text",
    label: str | None = None,
    tags: str | None = None,
    subject: str | None = None,
) -> CorpusCard:
    """Copy a corpus into an owner's strong room, in the place of the former one; returns what scientists will be told of it.

    Args: ``file`` is .jsonl, .csv, .parquet or .txt (one record a line), UTF-8; ``mock`` has rows that the owner publishes, in
        the same shape. The others name fields or columns: each record's text, its class, its BIO tags (one per character), and
        whom it is about, for a budget with ``unit = "subject"``.
    Raises: CorpusError (names file and line, never the text), HomeError (also while the owner is being served).
    Privacy: mock rows and the declared size, rounded down to two digits, are published as they are, outside epsilon.
    """
    from fl_privacy.guard import corpus
    from fl_privacy.guard.home import GuardHome
    from fl_privacy.row_files import Fields, read_rows

    fields = Fields(text, label, tags, subject)
    with GuardHome(home / "guard") as guard:
        published = [*read_rows(mock, fields._replace(subject=None))] if mock else []
        return corpus.add_corpus(guard, file, published, fields)


def count_labels(home: Path) -> dict[str, Counter[str]]:
    """For the owner only: how many private rows have each label, or an entity of each kind; by what they are annotated with.

    Raises: CorpusError, HomeError (also while the owner is being served).
    """
    from fl_privacy.guard.corpus import card_of, rows_file
    from fl_privacy.guard.home import GuardHome
    from fl_privacy.guard.labels import label_counts
    from fl_privacy.row_files import StoredRows

    with GuardHome(home / "guard") as guard, StoredRows(rows_file(guard)) as rows:
        return {what: label_counts(rows, what) for what in card_of(guard).annotations}


def personal_model(home: Path, plan: str, model: Path, out: Path) -> None:
    """Write this owner's own model of a plan with ``local_layers``: the scientist's ``model``, with its own layers in place.

    Args: plan is the name of one that this owner approved, or its digest, or the beginning of that; model is the folder
        ``model/`` of the scientist's run; out is a new folder, which Hugging Face's ``Auto`` classes read.
    Raises: PlanError (no such plan, more than one, or none with own layers), HomeError (none are kept, ``out`` holds something,
        or the owner is being served), ModelError (``model`` is not one of the plan).
    Privacy: within the plan's epsilon at this owner, but no sum over owners hides its own layers.
    """
    from fl_privacy.guard.home import GuardHome
    from fl_privacy.guard.personal_model import save_personal_model

    with GuardHome(home / "guard") as guard:
        save_personal_model(guard, plan, model, out)


def read_ledger(home: Path) -> tuple[list[LedgerEntry], LedgerStatement]:
    """All entries of an owner's ledger and its statement, verified; works beside a running guard. Raises: LedgerError."""
    with contextlib.closing(_open_ledger(home)) as ledger:
        return ledger.entries(), ledger.statement()


def export_ledger(home: Path, file: Path) -> str:
    """Write the signed entries to a file for an auditor; returns the owner's public key. Raises: LedgerError, HomeError.

    Works beside a running guard. The entries tell what was spent on which plan, and hold no text.
    """
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
    """The owner's registry with all members' signatures, for auditors, whose ``read_signed_registry`` takes its ``canonical``.

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
