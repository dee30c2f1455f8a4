"""A signed message that crashes its decoder, takes all time or all memory is refused, and the next one is answered."""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Iterator
from multiprocessing import forkserver

import pytest
from syft.serde.deserialize import _deserialize as deserialize
from syft.serde.serialize import _serialize as serialize

from fl_privacy.datasite import taster as taster_module
from fl_privacy.datasite.taster import FORGIVEN, Taster
from fl_privacy.errors import MessageError
from tests.datasite.crafted import a_message, large_list, left_open, long_bytes

TEXTS = (b"SyftAPICall", b"server_uid", b"UID", b"path", b"str", b"kwargs", b"dict", b"list", b"bool")


@pytest.fixture(scope="module")
def taster() -> Iterator[Taster]:
    server = forkserver._forkserver  # one a process, and other tests' one has not loaded Syft, which takes seconds each time
    before = server._preload_modules
    server._stop()
    server.set_forkserver_preload([taster_module.__name__])
    made = Taster("the account of {}".format, seconds=2, memory=1 << 30)
    yield made
    made.stop()
    server._stop()
    server.set_forkserver_preload(before)


def test_an_honest_message_passes_and_the_process_stays(taster: Taster) -> None:
    taster.taste(a_message(), "ada")
    first = taster._running
    taster.taste(bytes(serialize(list(range(1000)), to_bytes=True)), "ada")
    assert taster._running is first


@pytest.mark.parametrize("text", TEXTS)
def test_a_message_that_crashes_the_decoder_is_refused_and_the_next_is_tasted(taster: Taster, text: bytes) -> None:
    with pytest.raises(MessageError, match="ended the process"):
        taster.taste(left_open(a_message(), text), f"eve {text!r}")
    taster.taste(a_message(), "ada")


def test_a_message_that_takes_all_time_is_refused(taster: Taster) -> None:
    endless = long_bytes(400_000, bytes(1024))
    assert len(endless) < 4 << 20
    with pytest.raises(MessageError, match="ended the process"):
        taster.taste(endless, "eve with time")
    taster.taste(a_message(), "ada")


def test_a_message_that_takes_all_memory_is_refused(taster: Taster) -> None:
    huge = large_list(8_000, bytes(serialize(bytes(1 << 20), to_bytes=True)))
    assert len(huge) < 4 << 20
    with pytest.raises(MessageError, match="cannot be decoded"):
        taster.taste(huge, "eve with memory")
    taster.taste(a_message(), "ada")


def test_the_crafted_messages_are_what_they_claim() -> None:
    assert deserialize(long_bytes(3, b"abcdefghij"), from_bytes=True) == 3 * b"abcdefghij"
    assert deserialize(large_list(4, bytes(serialize("x", to_bytes=True))), from_bytes=True) == ["x"] * 4


def test_what_is_no_message_is_refused_without_ending_the_process(taster: Taster) -> None:
    taster.taste(a_message(), "ada")
    first = taster._running
    for blob in (b"", b"x" * 64, a_message()[:-16], a_message().replace(b"UID\0", b"UUU\0", 1)):
        with pytest.raises(MessageError, match="cannot be decoded"):
            taster.taste(blob, "bob")
    assert taster._running is first


def test_the_log_names_the_account_and_its_key_is_not_tasted_for_ever(taster: Taster, caplog: pytest.LogCaptureFixture) -> None:
    bad = left_open(a_message(), b"kwargs")
    with caplog.at_level(logging.WARNING, "fl_privacy.datasite"):
        for _ in range(FORGIVEN):
            with pytest.raises(MessageError, match="ended the process"):
                taster.taste(bad, "f00d")
    assert [record.getMessage() for record in caplog.records if "f00d" in record.getMessage()] == [
        f"a message of the account of f00d ended its decoder (number {number})" for number in range(1, FORGIVEN + 1)
    ]
    for message in (bad, a_message()):
        with pytest.raises(MessageError, match="too often"):
            taster.taste(message, "f00d")
    taster.taste(a_message(), "ada")


def test_a_process_that_somebody_else_ended_counts_against_nobody(taster: Taster) -> None:
    for _ in range(FORGIVEN + 1):
        taster.taste(a_message(), "carl")
        assert taster._running is not None
        os.kill(taster._running[0].pid or 0, signal.SIGKILL)
        taster._running[0].join()
    taster.taste(a_message(), "carl")


def test_damaged_messages_are_decoded_or_refused(taster: Taster) -> None:
    draw, refused = random.Random(3), 0
    for number in range(300):
        damaged = bytearray(a_message())
        for _ in range(draw.randrange(1, 8)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            taster.taste(bytes(damaged), f"key {number}")
        except MessageError:
            refused += 1
    assert refused > 30
    taster.taste(a_message(), "ada")
