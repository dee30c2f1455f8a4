"""An owner's guard home: one folder, mode 0700, that holds everything the owner must not lose or show.

domain.toml   owner's name, budget and policy      corpus/     private rows, salt, card
mock.jsonl    rows that the owner publishes        keys/       identity, HE secret keys (0600)
ledger.sqlite privacy ledger, ledger.head its end  approvals/  one file per plan
paused.json   while the owner has paused all of it
registry.json the owners, and who has signed       rounds/     one folder per order
inbox/ outbox/ blobs by sha256                     guard.lock  held by the one process that uses the home
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import tomli_w

from fl_privacy.durable_files import write_atomically
from fl_privacy.encryption.keys import Identity
from fl_privacy.encryption.registry import Registry, RegistryRecord, Scheme, complete_registry
from fl_privacy.errors import FlPrivacyError, HomeError, KeyMissing
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.home_ledger import FILE, HomeLedger, open_ledger
from fl_privacy.messages import open_signed, public_hex

FOLDERS = ("corpus", "keys", "approvals", "rounds", "inbox", "outbox")


class GuardHome:
    """Paths, keys and the ledger of one guard; one process at a time."""

    def __init__(self, folder: Path) -> None:
        """Open an existing home and take its lock; a changed budget in domain.toml is written into the ledger.

        Raises: HomeError (missing, open to others, in use, or a changed field of the budget that cannot change), LedgerError.
        """
        self.folder = folder.resolve()
        if not (self.folder / "domain.toml").is_file():
            raise HomeError(f"{folder} is not a guard home; create one with `fl-privacy owner init`")
        if self.folder.stat().st_mode & 0o077:
            raise HomeError(f"{folder} can be read by other users; run `chmod 700 {folder}`")
        self._lock = _take_lock(self.folder / "guard.lock")
        for leftover in self.folder.rglob("*.partial"):
            leftover.unlink()  # of a write that a crash cut short
        try:
            self.domain = Domain.read(self.folder / "domain.toml")
            self.owner = self.domain.owner
            self.identity = Identity.load(self.folder / "keys")
            self.ledger = open_ledger(self.folder, self.identity.signing_key)
            self._adopt_budget()
        except FlPrivacyError:
            os.close(self._lock)
            raise

    @classmethod
    def create(cls, folder: Path, domain: Domain) -> GuardHome:
        """Make a new home with fresh keys and an empty ledger; raises HomeError if the folder holds anything."""
        if folder.exists() and any(folder.iterdir()):
            raise HomeError(f"{folder} is not empty; choose a new folder")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        for name in FOLDERS:
            (folder / name).mkdir(mode=0o700)
        identity = Identity.generate()
        identity.save(folder / "keys")
        budget = domain.budget
        ledger = HomeLedger.create(
            folder / FILE,
            domain.owner,
            identity.signing_key,
            budget.epsilon,
            budget.delta,
            budget.accountant,
            unit=budget.unit,
            period_days=budget.period_days,
            decisions_kept=True,
        )
        ledger.keep_head()
        ledger.close()
        (folder / FILE).chmod(0o600)
        write_atomically(folder / "domain.toml", tomli_w.dumps(domain.model_dump(mode="json", exclude_none=True)))
        return cls(folder)

    def close(self) -> None:
        """Close the ledger and release the lock."""
        self.ledger.close()
        os.close(self._lock)

    def __enter__(self) -> GuardHome:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def registry_record(self) -> RegistryRecord:
        """The registry as this owner signed it, with the signatures that have come in. Raises: KeyMissing before enrolment."""
        return read_registry_record(self.folder, self.owner)

    @property
    def registry(self) -> Registry:
        """The owners that this owner has vetted, signed by the others or not. Raises: KeyMissing before enrolment."""
        return open_signed(self.registry_record.registry, Registry, public_hex(self.identity.signing_key))

    def require_complete_registry(self) -> Registry:
        """The registry, once all its members have signed it. Raises: KeyMissing that names who has not."""
        complete_registry(self.registry_record)
        return self.registry

    def secret_key(self, scheme: Scheme) -> bytes:
        """The HE secret key that the owners of the registry share. Raises: KeyMissing before it has arrived."""
        try:
            return self.secret_key_path(scheme).read_bytes()
        except FileNotFoundError:
            raise KeyMissing(
                f"{self.owner} does not hold the owners' {scheme} encryption key; the scientist's `submit` and `train` relay it"
            ) from None

    def _adopt_budget(self) -> None:
        """Only epsilon may differ from what the ledger was opened with; the other fields say what its entries mean."""
        wanted, opening = self.domain.budget, self.ledger.opening
        for field in ("delta", "accountant", "unit", "period_days"):
            told, kept = getattr(wanted, field), getattr(opening, field)
            if told != kept:
                raise HomeError(
                    f"{self.folder / 'domain.toml'}: budget.{field} is {told!r}, but the ledger was made with {kept!r}, which"
                    " never changes; put it back, or make a new owner's folder"
                )
        if wanted.epsilon != self.ledger.budget:
            self.ledger.change_budget(wanted.epsilon, "domain.toml was changed")

    def secret_key_path(self, scheme: Scheme) -> Path:
        """Where the HE secret key of a scheme is kept."""
        return self.folder / "keys" / f"{scheme}.key"


def read_registry_record(folder: Path, owner: str) -> RegistryRecord:
    """``registry.json`` of a guard home, also while its guard runs. Raises: KeyMissing before enrolment, MessageError."""
    try:
        return RegistryRecord.parse((folder / "registry.json").read_bytes())
    except FileNotFoundError:
        raise KeyMissing(f"{owner} has not enrolled with other owners; run `fl-privacy owner enrol`") from None


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise HomeError(f"{path.parent} is in use by a running guard; stop it first") from None
    return descriptor
