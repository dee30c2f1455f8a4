"""Blobs: only whole, rightly named bytes are kept."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import pytest

from fl_privacy.errors import DigestMismatch, FlPrivacyError, HomeError, MessageError, OrderRefused, TooLarge
from fl_privacy.guard import blobs as module
from fl_privacy.guard.blobs import Blobs


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    for name in ("inbox", "outbox"):
        (tmp_path / name).mkdir()
    return Blobs(tmp_path, lambda: nullcontext(frozenset()))


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
    with blobs.open(name_of(b"abcd")) as file:
        assert file.read() == b"abcd"


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "0" * 63, "", "0" * 64 + "\n"])
def test_a_name_that_is_not_a_hash_reaches_no_file(blobs: Blobs, name: str) -> None:
    for call in (
        lambda: blobs.open(name),
        lambda: blobs.discard(name),
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
    with pytest.raises(TooLarge, match="inbox is full"):
        asyncio.run(blobs.receive(name_of(b"1234"), stream(b"1234")))


def test_a_blob_that_never_came_is_named(blobs: Blobs) -> None:
    with pytest.raises(OrderRefused, match="has not been uploaded"):
        blobs.open(name_of(b"x"))


def test_the_inbox_cannot_be_fetched(blobs: Blobs) -> None:
    asyncio.run(blobs.receive(name_of(b"mine"), stream(b"mine")))
    with pytest.raises(FlPrivacyError):
        blobs.published(name_of(b"mine"))


def test_bytes_that_rot_on_disk_are_noticed(blobs: Blobs) -> None:
    asyncio.run(blobs.receive(name_of(b"good"), stream(b"good")))
    (blobs.inbox / name_of(b"good")).write_bytes(b"evil")
    with pytest.raises(DigestMismatch):
        blobs.open(name_of(b"good"))


def test_what_is_published_is_named_by_its_hash_and_complete_or_absent(blobs: Blobs) -> None:
    assert blobs.publish(lambda file: file.write(b"abc") and None) == (name_of(b"abc"), 3)
    assert blobs.published(name_of(b"abc")).read_bytes() == b"abc"

    def breaks(file: BinaryIO) -> None:
        file.write(b"half")
        raise MessageError("no more")

    with pytest.raises(MessageError):
        blobs.publish(breaks)
    assert [path.name for path in blobs.outbox.iterdir()] == [name_of(b"abc")]


def test_what_a_dead_guard_left_unfinished_is_removed_at_the_next_start(blobs: Blobs, tmp_path: Path) -> None:
    for folder in (blobs.inbox, blobs.outbox):
        (folder / "ab.partial").write_bytes(b"half")
    Blobs(tmp_path, lambda: nullcontext(frozenset()))
    assert [*blobs.inbox.iterdir(), *blobs.outbox.iterdir()] == []


def test_a_discarded_blob_is_gone(blobs: Blobs) -> None:
    asyncio.run(blobs.receive(name_of(b"x"), stream(b"x")))
    for _ in range(2):
        blobs.discard(name_of(b"x"))
    with pytest.raises(OrderRefused):
        blobs.open(name_of(b"x"))


ADA, BOB = "a" * 64, "b" * 64


def bring(blobs: Blobs, content: bytes, uploader: str) -> str:
    asyncio.run(blobs.receive(name_of(content), stream(content), uploader))
    return name_of(content)


def kept(blobs: Blobs) -> set[str]:
    return {path.name for path in blobs.inbox.iterdir() if not path.suffix}


@pytest.mark.parametrize(("limit", "value"), [("UPLOADER_QUOTA", 10), ("UPLOADER_COUNT", 2)])
def test_beyond_its_quota_a_scientists_own_oldest_blob_makes_room_and_nobody_elses(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(module, limit, value)
    bobs, oldest = bring(blobs, b"bob's", BOB), bring(blobs, b"1234", ADA)
    os.utime(blobs.inbox / bobs, (time.time() - 200,) * 2)
    os.utime(blobs.inbox / oldest, (time.time() - 100,) * 2)
    others = {bring(blobs, b"5678", ADA), bring(blobs, b"9abc", ADA)}
    assert kept(blobs) == {bobs} | others


def test_what_an_unopened_order_needs_is_never_dropped_and_the_oldest_of_the_rest_goes_first(
    tmp_path: Path, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UPLOADER_COUNT", 3)
    needed, old, newer = (bring(blobs, content, ADA) for content in (b"model", b"old", b"newer"))
    for age, name in enumerate((newer, old, needed), start=1):
        os.utime(blobs.inbox / name, (time.time() - 100 * age,) * 2)
    careful = Blobs(tmp_path, lambda: nullcontext({needed}))
    arrived = bring(careful, b"new", ADA)
    assert kept(careful) == {needed, newer, arrived}


def test_when_what_is_needed_leaves_no_room_the_upload_is_refused_with_why_and_nothing_is_lost(
    tmp_path: Path, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {bring(blobs, b"model", ADA), bring(blobs, b"spare", ADA)}
    monkeypatch.setattr(module, "UPLOADER_QUOTA", 10)
    careful = Blobs(tmp_path, lambda: nullcontext({name_of(b"model")}))
    with pytest.raises(TooLarge, match="1 are needed by orders that are not opened yet, so finish their rounds first"):
        bring(careful, b"larger", ADA)
    assert kept(careful) == both, "what could have gone stays, since it would not have helped"
    bring(careful, b"small", ADA)
    assert kept(careful) == {name_of(b"model"), name_of(b"small")}


def test_an_upload_larger_than_its_scientists_quota_is_refused_and_leaves_nothing(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UPLOADER_QUOTA", 3)
    with pytest.raises(TooLarge, match="one scientist's uploads"):
        bring(blobs, b"1234", ADA)
    assert list(blobs.inbox.iterdir()) == []


def test_uploads_that_are_under_way_count(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPLOADER_QUOTA", 10)
    monkeypatch.setattr(module, "CHECKED_EVERY", 0)
    (blobs.inbox / f"{'c' * 64}.{ADA}.1234.partial").write_bytes(bytes(8))
    with pytest.raises(TooLarge):
        bring(blobs, b"1234", ADA)
    bring(blobs, b"1234", BOB)


def test_what_two_keys_brought_goes_from_the_quota_of_one_and_stays_for_the_other(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UPLOADER_COUNT", 1)
    shared = bring(blobs, b"vocabulary", ADA)
    assert bring(blobs, b"vocabulary", BOB) == shared
    bobs = bring(blobs, b"bob's", BOB)
    assert kept(blobs) == {shared, bobs}
    assert blobs.holds(shared, ADA) and not blobs.holds(shared, BOB)
    adas = bring(blobs, b"ada's", ADA)
    assert kept(blobs) == {adas, bobs}, "nobody has room for it any more"


def test_whether_a_blob_is_held_is_told_to_those_who_brought_it_only(blobs: Blobs) -> None:
    """Else anybody could test which models and vocabularies others train with."""
    name = bring(blobs, b"ada's", ADA)
    assert [blobs.holds(name, key) for key in (ADA, BOB, module.NOBODY)] == [True, False, False]
    assert not blobs.holds(name_of(b"never came"), ADA)
    with pytest.raises(MessageError):
        blobs.holds("../corpus/rows.jsonl", ADA)


def test_bringing_what_another_has_brought_changes_no_answer_to_that_one(blobs: Blobs) -> None:
    name = bring(blobs, b"same", ADA)
    assert bring(blobs, b"same", BOB) == name
    assert blobs.holds(name, ADA) and blobs.holds(name, BOB)
    blobs.discard(name, BOB)
    assert blobs.holds(name, ADA) and not blobs.holds(name, BOB)
    blobs.discard(name, BOB)  # not its to delete
    assert blobs.holds(name, ADA)
    blobs.discard(name, ADA)
    assert list(blobs.inbox.iterdir()) == []


def test_a_blob_that_has_rotted_is_not_held_until_it_comes_again(blobs: Blobs) -> None:
    name = bring(blobs, b"good", ADA)
    (blobs.inbox / name).write_bytes(b"evil")
    assert not blobs.holds(name, ADA)
    bring(blobs, b"good", ADA)
    assert blobs.holds(name, ADA)


def test_what_was_just_asked_for_is_not_the_first_to_make_room_or_to_grow_old(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UPLOADER_COUNT", 2)
    vocabulary = bring(blobs, b"vocabulary", ADA)
    bring(blobs, b"model", ADA)
    for path in blobs.inbox.iterdir():
        os.utime(path, (time.time() - (200 if vocabulary in path.name else 100),) * 2)
    assert blobs.holds(vocabulary, ADA)
    assert all(path.stat().st_mtime > time.time() - 50 for path in blobs.inbox.glob(f"{vocabulary}*"))
    arrived = bring(blobs, b"next", ADA)
    assert kept(blobs) == {vocabulary, arrived}, "the model went, which was brought later and not asked for"


def test_what_is_made_here_is_kept_under_its_hash_within_its_keys_quota_or_not_at_all(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DigestMismatch):
        blobs.store(name_of(b"right"), b"wrong", ADA)
    with pytest.raises(MessageError):
        blobs.store("../x", b"x", ADA)
    monkeypatch.setattr(module, "UPLOADER_QUOTA", 3)
    with pytest.raises(TooLarge, match="one scientist's uploads"):
        blobs.store(name_of(b"1234"), b"1234", ADA)
    assert list(blobs.inbox.iterdir()) == []
    blobs.store(name_of(b"123"), b"123", ADA)
    assert blobs.holds(name_of(b"123"), ADA)


def test_a_full_disk_leaves_nothing_of_what_is_made_here(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HomeError, match="No space left"):
        blobs.store(name_of(b"1234"), b"1234", ADA)
    assert list(blobs.inbox.iterdir()) == []


def test_an_uploader_that_is_no_key_reaches_no_file(blobs: Blobs) -> None:
    with pytest.raises(MessageError):
        bring(blobs, b"x", "../../x")
