"""Blobs by sha256: the inbox takes what the scientist sends, the outbox holds what the guard chose to give."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fl_privacy.durable_files import disk_problems_named, sync_folder, write_atomically
from fl_privacy.errors import BlobMissing, DigestMismatch, MessageError, TooLarge

LARGEST_BLOB = 2 << 30  # bytes; BERT-base in float32 is 0.41e9
INBOX_QUOTA = 16 << 30
UPLOADER_QUOTA = 8 << 30  # of one scientist's key; its oldest unneeded blobs make room: a run uploads a model each round
UPLOADER_COUNT = 256  # an upload of one byte takes a file and a directory entry, too
CHECKED_EVERY = 64 << 20  # bytes of an upload between two looks at the quotas
UPLOADER = ".uploader"  # of the small file beside a blob that names all who brought it
NOBODY = "0" * 64  # whose blobs those are that were brought without a name

Held = Callable[[], AbstractContextManager[Set[str]]]


@dataclass(frozen=True)
class _Entry:
    name: str
    uploaders: frozenset[str]
    size: int
    used: float
    whole: bool


class Blobs:
    """The two folders of one guard.

    Several keys may bring the same blob. It counts for the quota of each, and goes when the last of them has no room for it: so
    nobody can drop what another needs, and no answer depends on what another has brought.
    """

    def __init__(self, home: Path, held: Held) -> None:
        """Args: held gives the names of the blobs that must stay, and lets no other be needed while its context lasts."""
        self.inbox, self.outbox, self._held, self._naming = home / "inbox", home / "outbox", held, threading.Lock()
        for folder in (self.inbox, self.outbox):
            for leftover in folder.glob("*.partial"):
                leftover.unlink()

    async def receive(self, sha256: str, chunks: AsyncIterator[bytes], uploader: str = NOBODY) -> int:
        """Store an upload if its bytes have the announced hash; returns its size.

        Args: uploader is the key that the datasite names; it is told, not proven, and counts for quotas only.
        Raises: DigestMismatch, MessageError (name), TooLarge (size, quota); a bad or broken upload leaves nothing behind.
        """
        _check_name(sha256)
        _check_name(uploader)
        digest, size = hashlib.sha256(), 0
        looked_at = await asyncio.to_thread(self._make_room, uploader)
        with self._arriving(sha256, uploader) as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > LARGEST_BLOB:
                    raise TooLarge(f"blob {sha256[:16]}… is larger than the {LARGEST_BLOB} bytes that this guard takes")
                digest.update(chunk)
                file.write(chunk)
                if size - looked_at > CHECKED_EVERY:
                    looked_at = await asyncio.to_thread(self._make_room, uploader, size)
            file.flush()
            await asyncio.to_thread(self._make_room, uploader, size)
            if digest.hexdigest() != sha256:
                raise DigestMismatch(f"the uploaded bytes do not have the announced hash {sha256[:16]}…")
        return size

    def store(self, sha256: str, content: bytes, uploader: str) -> None:
        """Store what this guard has made of the uploader's blobs, as if the uploader had sent it. Raises: as ``receive``."""
        _check_name(sha256)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DigestMismatch(f"the bytes made here do not have the announced hash {sha256[:16]}…")
        with self._arriving(sha256, uploader) as file:
            file.write(content)
            file.flush()
            self._make_room(uploader)

    @contextlib.contextmanager
    def _arriving(self, sha256: str, uploader: str) -> Iterator[BinaryIO]:
        """A file that is the blob as soon as the block has ended well, and else is gone."""
        partial = self.inbox / f"{sha256}.{uploader}.{secrets.token_hex(4)}.partial"
        try:
            with (
                disk_problems_named(self.inbox / sha256),
                open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
            ):
                yield file
                file.flush()
                os.fsync(file.fileno())
            with self._naming:
                self._name_uploaders(sha256, self._uploaders(sha256) | {uploader})
                partial.replace(self.inbox / sha256)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, uploader: str, size: int = 0) -> int:
        """Drop the uploader's oldest blobs that no unopened order needs, until it is within its quota; returns ``size``.

        Raises: TooLarge when what is arriving does not fit all the same.
        """
        entries = list(self._entries())
        mine = [entry for entry in entries if uploader in entry.uploaders]
        if _is_too_much(mine):
            with self._held() as needed:
                for entry in _spare(mine, needed):
                    self.discard(entry.name, uploader)
            entries = list(self._entries())
        if sum(entry.size for entry in entries) > INBOX_QUOTA:
            raise TooLarge("this guard's inbox is full; its owner can see who filled it")
        return size

    def _entries(self) -> Iterator[_Entry]:
        for path in self.inbox.iterdir():
            with contextlib.suppress(FileNotFoundError):  # discarded by another thread meanwhile
                told, (name, *rest) = path.stat(), path.name.split(".")
                if path.suffix != UPLOADER:
                    uploaders = frozenset(rest[:1]) or self._uploaders(name)
                    yield _Entry(name, uploaders, told.st_size, told.st_mtime, whole=not rest)

    def _uploaders(self, sha256: str) -> frozenset[str]:
        """Whose a blob is; nobody's when it is not there, ``NOBODY``'s when it was brought without a name."""
        try:
            return frozenset((self.inbox / f"{sha256}{UPLOADER}").read_text().split())
        except FileNotFoundError:
            return frozenset({NOBODY} if (self.inbox / sha256).exists() else ())

    def _name_uploaders(self, sha256: str, uploaders: Set[str]) -> None:
        write_atomically(self.inbox / f"{sha256}{UPLOADER}", "\n".join(sorted(uploaders)))

    def holds(self, sha256: str, uploader: str) -> bool:
        """Whether this key has brought a blob that is still here, byte for byte; it counts as used now, so others go first.

        Privacy: the answer is the same for what is not here and for what only other keys have brought.
        """
        try:
            with self.open(sha256, uploader) as file:
                os.utime(file.fileno())
                os.utime(self.inbox / f"{sha256}{UPLOADER}")
        except (BlobMissing, DigestMismatch, FileNotFoundError):  # of use again once it is sent again
            return False
        return True

    def open(self, sha256: str, uploader: str | None = None) -> BinaryIO:
        """An uploaded blob as a file, for the caller to close, its bytes checked again.

        Args: uploader is a key that must have brought it, if one is given.
        Raises: BlobMissing when it never arrived, or not from there; DigestMismatch when the file changed.
        """
        _check_name(sha256)
        missing = BlobMissing(f"blob {sha256[:16]}… has not been uploaded")
        if uploader is not None and uploader not in self._uploaders(sha256):
            raise missing
        try:
            file = (self.inbox / sha256).open("rb")
        except FileNotFoundError:
            raise missing from None
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            file.close()
            raise DigestMismatch(f"stored blob {sha256[:16]}… has changed")
        file.seek(0)
        return file

    def discard(self, sha256: str, uploader: str | None = None) -> None:
        """Delete an uploaded blob that is of no more use, or not to one key: then it stays if others have brought it, too."""
        _check_name(sha256)
        with self._naming:
            if uploader is not None and (others := self._uploaders(sha256) - {uploader}):
                self._name_uploaders(sha256, others)
            else:
                (self.inbox / sha256).unlink(missing_ok=True)
                (self.inbox / f"{sha256}{UPLOADER}").unlink(missing_ok=True)

    def publish(self, write: Callable[[BinaryIO], object]) -> tuple[str, int]:
        """Put what ``write`` writes into the outbox, all or nothing; returns its sha256 and size in bytes."""
        partial = self.outbox / f"{secrets.token_hex(16)}.partial"
        try:
            with (
                disk_problems_named(self.outbox),
                open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file,
            ):
                write(file)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            partial.replace(self.outbox / sha256)
            sync_folder(self.outbox)  # what is signed next names it
        finally:
            partial.unlink(missing_ok=True)
        return sha256, size

    def published(self, sha256: str) -> Path:
        """Where an outgoing blob lies. Raises: MessageError."""
        _check_name(sha256)
        path = self.outbox / sha256
        if not path.is_file():
            raise MessageError(f"there is no blob {sha256[:16]}… to fetch here")
        return path


def _is_too_much(entries: Sequence[_Entry]) -> bool:
    return sum(entry.size for entry in entries) > UPLOADER_QUOTA or len(entries) > UPLOADER_COUNT


def _spare(mine: Sequence[_Entry], needed: Set[str]) -> list[_Entry]:
    """The oldest unneeded entries without which the others are within the quota. Raises: TooLarge; then nothing is spare."""
    left, spare = list(mine), list[_Entry]()
    for entry in sorted(mine, key=lambda entry: entry.used):
        if entry.whole and entry.name not in needed and _is_too_much(left):
            left.remove(entry)
            spare.append(entry)
    if _is_too_much(left):
        kept = sum(entry.whole for entry in left)
        why = f"; {kept} are needed by orders that are not opened yet, so finish their rounds first" if kept else ""
        raise TooLarge(f"one scientist's uploads may take {UPLOADER_QUOTA} bytes and {UPLOADER_COUNT} blobs here{why}")
    return spare


def _check_name(sha256: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise MessageError("a blob is named by its sha256 in lower-case hex")
