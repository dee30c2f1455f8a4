"""An owner's guard home: one folder, mode 0700, that holds everything the owner must not lose or show.

domain.toml   owner's name, budget and policy      corpus/     private rows, salt, card
mock.jsonl    rows that the owner publishes        keys/       identity, HE secret key, envelopes (0600)
ledger.sqlite privacy ledger                       approvals/  one file per plan
registry.json the owners of the federation         rounds/     one folder per order
inbox/ outbox/ blobs by sha256                     guard.lock  held by the one process that uses the home
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import tomli_w

from fl_privacy.encryption.keys import Identity
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import HomeError, KeyMissing
from fl_privacy.guard.domain import Domain
from fl_privacy.privacy.ledger import Ledger

FOLDERS = ("corpus", "keys", "approvals", "rounds", "inbox", "outbox")


class GuardHome:
    """Paths, keys and the ledger of one guard; one process at a time."""

    def __init__(self, folder: Path) -> None:
        """Open an existing home and take its lock. Raises: HomeError (missing, open to others, in use)."""
        self.folder = folder.resolve()
        if not (self.folder / "domain.toml").is_file():
            raise HomeError(f"{folder} is not a guard home; create one with `fl-privacy owner init`")
        if self.folder.stat().st_mode & 0o077:
            raise HomeError(f"{folder} can be read by other users; run `chmod 700 {folder}`")
        self._lock = _take_lock(self.folder / "guard.lock")
        self.domain = Domain.read(self.folder / "domain.toml")
        self.owner = self.domain.owner
        self.identity = Identity.load(self.folder / "keys")
        self.ledger = Ledger.open(self.folder / "ledger.sqlite", self.identity.signing_key)

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
        Ledger.create(
            folder / "ledger.sqlite", domain.owner, identity.signing_key, budget.epsilon, budget.delta, budget.accountant
        ).close()
        (folder / "ledger.sqlite").chmod(0o600)
        write_atomically(folder / "domain.toml", tomli_w.dumps(domain.model_dump(mode="json")))
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
    def registry(self) -> Registry:
        """The owners that this owner has vetted. Raises: KeyMissing before enrolment."""
        try:
            return Registry.parse((self.folder / "registry.json").read_bytes())
        except FileNotFoundError:
            raise KeyMissing(f"{self.owner} has not enrolled with other owners; run `fl-privacy owner enrol`") from None

    @property
    def secret_key(self) -> bytes:
        """The HE secret key shared by the owners. Raises: KeyMissing before it has arrived."""
        try:
            return (self.folder / "keys" / "he_secret.bin").read_bytes()
        except FileNotFoundError:
            raise KeyMissing(f"{self.owner} has not received the owners' encryption key") from None


def write_atomically(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Replace a file so that a crash leaves the old or the new content, never a part."""
    partial = path.with_name(path.name + ".partial")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """``write_atomically`` for a small mapping."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, sort_keys=True))


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise HomeError(f"{path.parent} is in use by a running guard; stop it first") from None
    return descriptor
