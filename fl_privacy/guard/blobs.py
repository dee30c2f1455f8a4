"""Blobs by sha256: the inbox takes what the scientist sends, the outbox holds what the guard chose to give."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from fl_privacy.errors import DigestMismatch, MessageError, OrderRefused
from fl_privacy.guard.home import write_atomically

LARGEST_BLOB = 2 << 30  # bytes; BERT-base in float32 is 0.41e9
INBOX_QUOTA = 16 << 30


class Blobs:
    """The two folders of one guard."""

    def __init__(self, home: Path) -> None:
        self.inbox, self.outbox = home / "inbox", home / "outbox"
        for leftover in self.inbox.glob("*.partial"):
            leftover.unlink()

    async def receive(self, sha256: str, chunks: AsyncIterator[bytes]) -> int:
        """Store an upload if its bytes have the announced hash; returns its size.

        Raises: DigestMismatch, MessageError (name, size, quota); a bad or broken upload leaves nothing behind.
        """
        _check_name(sha256)
        room = INBOX_QUOTA - sum(path.stat().st_size for path in self.inbox.iterdir())
        partial, digest, size = self.inbox / f"{sha256}.{secrets.token_hex(4)}.partial", hashlib.sha256(), 0
        try:
            with partial.open("xb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > min(LARGEST_BLOB, room):
                        raise MessageError(f"blob {sha256[:16]}… is larger than this guard takes")
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise DigestMismatch(f"the uploaded bytes do not have the announced hash {sha256[:16]}…")
            partial.replace(self.inbox / sha256)
        finally:
            partial.unlink(missing_ok=True)
        return size

    def read(self, sha256: str) -> bytes:
        """An uploaded blob. Raises: OrderRefused when it never arrived, DigestMismatch when the file changed."""
        _check_name(sha256)
        try:
            blob = (self.inbox / sha256).read_bytes()
        except FileNotFoundError:
            raise OrderRefused(f"blob {sha256[:16]}… has not been uploaded") from None
        if hashlib.sha256(blob).hexdigest() != sha256:
            raise DigestMismatch(f"stored blob {sha256[:16]}… has changed")
        return blob

    def publish(self, blob: bytes) -> str:
        """Put bytes into the outbox; returns their sha256."""
        sha256 = hashlib.sha256(blob).hexdigest()
        write_atomically(self.outbox / sha256, blob)
        return sha256

    def published(self, sha256: str) -> Path:
        """Where an outgoing blob lies. Raises: MessageError."""
        _check_name(sha256)
        path = self.outbox / sha256
        if not path.is_file():
            raise MessageError(f"there is no blob {sha256[:16]}… to fetch here")
        return path


def _check_name(sha256: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise MessageError("a blob is named by its sha256 in lower-case hex")
