"""The file under a privacy ledger: numbered lines in SQLite that can be added and read, never changed or removed.

SQLite gives what a spend needs: a write either happened entirely or not at all, whenever the process dies, and one writer at
a time among all processes. Full synchronisation: what was written survives a power cut. The rollback journal keeps everything
in one file, so that a copy of it is a copy of the ledger.

``PRAGMA user_version`` numbers the form of the file. Files of version 1 carry no number; opening one brings it up to date in
one transaction, in which no line is touched.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_privacy.errors import LedgerError

VERSION = 2
BUSY_SECONDS = 60.0  # how long to wait for another process that is writing

SCHEMA = (
    "CREATE TABLE entries (seq INTEGER PRIMARY KEY, signed TEXT NOT NULL) STRICT",
    "CREATE TRIGGER entries_are_final BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'ledger entries are final'); END",
    "CREATE TRIGGER entries_stay BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'ledger entries stay'); END",
    # also stops INSERT OR REPLACE, which deletes a row without firing the trigger above
    "CREATE TRIGGER entries_follow BEFORE INSERT ON entries WHEN NEW.seq <> (SELECT coalesce(max(seq) + 1, 0) FROM entries)"
    " BEGIN SELECT RAISE(ABORT, 'ledger entries are numbered without gaps'); END",
    f"PRAGMA user_version = {VERSION}",
)
# by the version that a file has: what makes it the next one
UPGRADES = {1: ("PRAGMA user_version = 2",)}


class EntryFile:
    """One connection to the file. Not for several threads at once: the caller holds a lock."""

    def __init__(self, path: Path) -> None:
        """Open an existing file. Raises: LedgerError when there is none."""
        self.path = path
        if not path.is_file():
            raise LedgerError(f"there is no ledger at {path}; create one before the first order")
        with self._problems_named():
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA synchronous = EXTRA")
            self._upgrade()

    @property
    def version(self) -> int:
        """Of the file's form; 0 where nothing was written yet."""
        (number,) = self._db.execute("PRAGMA user_version").fetchone()
        is_empty = self._db.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        return int(number) or (0 if is_empty else 1)

    @classmethod
    def touch(cls, path: Path) -> EntryFile:
        """Open a file that is made, for its owner's eyes only, if it is missing."""
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        return cls(path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Everything inside happens together or not at all, and no other process writes meanwhile."""
        with self._problems_named():
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def make_table(self) -> None:
        """Within ``writing``: prepare a new file. Raises: LedgerError when the file is in use already."""
        if self.version:
            raise LedgerError(f"{self.path} already holds a ledger; open it instead")
        for statement in SCHEMA:
            self._db.execute(statement)

    def add(self, seq: int, line: str) -> None:
        """Within ``writing``: add the line that comes next."""
        self._db.execute("INSERT INTO entries (seq, signed) VALUES (?, ?)", (seq, line))

    def lines(self, first: int = 0) -> list[str]:
        """The lines from number ``first`` on, oldest first."""
        with self._problems_named():
            return [line for (line,) in self._db.execute("SELECT signed FROM entries WHERE seq >= ? ORDER BY seq", (first,))]

    def _upgrade(self) -> None:
        """Bring the file to this version, or leave it as it is whenever the process dies."""
        if self.version > VERSION:
            raise LedgerError(f"{self.path} was written by a newer fl_privacy (file version {self.version}); install that one")
        if self.version in UPGRADES:
            with self.writing():
                while self.version in UPGRADES:  # looked at again: another process may have been faster
                    for statement in UPGRADES[self.version]:
                        self._db.execute(statement)

    def close(self) -> None:
        """Close the connection; nothing can be read or written after."""
        self._db.close()

    @contextmanager
    def _problems_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as problem:
            raise LedgerError(f"the ledger at {self.path} cannot be used: {problem}; nothing may train until it can") from None
