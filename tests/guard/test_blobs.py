"""Blobs: only whole, rightly named bytes are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fl_privacy.errors import DigestMismatch, FlPrivacyError, MessageError, OrderRefused
from fl_privacy.guard import blobs as module
from fl_privacy.guard.blobs import Blobs


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    for name in ("inbox", "outbox"):
        (tmp_path / name).mkdir()
    return Blobs(tmp_path)


async def stream(*chunks: bytes, breaks: bool = False) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if breaks:
        raise ConnectionResetError


def name_of(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def test_an_upload_is_kept_under_its_hash(blobs: Blobs) -> None:
    assert asyncio.run(blobs.receive(name_of(b"abcd"), stream(b"ab", b"cd"))) == 4
    assert blobs.read(name_of(b"abcd")) == b"abcd"


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "0" * 63, "", "0" * 64 + "\n"])
def test_a_name_that_is_not_a_hash_reaches_no_file(blobs: Blobs, name: str) -> None:
    for call in (
        lambda: blobs.read(name),
        lambda: blobs.published(name),
        lambda: asyncio.run(blobs.receive(name, stream(b"x"))),
    ):
        with pytest.raises(MessageError):
            call()


def test_wrong_bytes_leave_nothing(blobs: Blobs) -> None:
    with pytest.raises(DigestMismatch):
        asyncio.run(blobs.receive(name_of(b"right"), stream(b"wrong")))
    assert list(blobs.inbox.iterdir()) == []


def test_a_broken_upload_leaves_nothing(blobs: Blobs) -> None:
    with pytest.raises(ConnectionResetError):
        asyncio.run(blobs.receive(name_of(b"abcd"), stream(b"ab", breaks=True)))
    assert list(blobs.inbox.iterdir()) == []


def test_the_quota_holds(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INBOX_QUOTA", 10)
    asyncio.run(blobs.receive(name_of(b"12345678"), stream(b"12345678")))
    with pytest.raises(MessageError, match="larger"):
        asyncio.run(blobs.receive(name_of(b"1234"), stream(b"1234")))


def test_a_blob_that_never_came_is_named(blobs: Blobs) -> None:
    with pytest.raises(OrderRefused, match="has not been uploaded"):
        blobs.read(name_of(b"x"))


def test_the_inbox_cannot_be_fetched(blobs: Blobs) -> None:
    asyncio.run(blobs.receive(name_of(b"mine"), stream(b"mine")))
    with pytest.raises(FlPrivacyError):
        blobs.published(name_of(b"mine"))


def test_bytes_that_rot_on_disk_are_noticed(blobs: Blobs) -> None:
    asyncio.run(blobs.receive(name_of(b"good"), stream(b"good")))
    (blobs.inbox / name_of(b"good")).write_bytes(b"evil")
    with pytest.raises(DigestMismatch):
        blobs.read(name_of(b"good"))
