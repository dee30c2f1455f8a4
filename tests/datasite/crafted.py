"""Syft messages that Syft would never write: a text left open, and small ones that decode to very large values."""

from __future__ import annotations

import struct

from syft.client.api import SyftAPICall
from syft.serde.serialize import _serialize as serialize
from syft.types.uid import UID

STRUCT, LIST, BYTES, POINTERS = 0, 1, 2, 6


def a_message() -> bytes:
    """A small call as an honest client encodes it."""
    return bytes(serialize(SyftAPICall(server_uid=UID(), path="metadata", args=["x"], kwargs={}), to_bytes=True))


def left_open(message: bytes, text: bytes) -> bytes:
    """The message with a text whose closing zero byte is another: pycapnp 2.0 reads a null pointer."""
    assert text + b"\0" in message
    return message.replace(text + b"\0", text + b"\xfc", 1)


def long_bytes(pointers: int, chunk: bytes) -> bytes:
    """One value of type bytes in so many chunks, all of them the same bytes of the message; Syft adds them one by one."""
    return _record("bytes", pointers, chunk)


def large_list(pointers: int, element: bytes) -> bytes:
    """A list whose elements are all the same bytes of the message, an encoded value; each is decoded anew."""
    data = _split(element)
    # word 0: the struct; 1: its list of lists, which comes last; 2: the inner list, of one pointer; then the element
    words = [
        _pointer(STRUCT, 0, 0, 1),
        _pointer(LIST, 1 + len(data), POINTERS, pointers),
        _pointer(LIST, 0, BYTES, len(element)),
    ]
    words += data
    words += [_pointer(LIST, 2 - (place + 1), POINTERS, 1) for place in range(len(words), len(words) + pointers)]
    return _record("list", 1, _framed(words))


def _record(kind: str, pointers: int, chunk: bytes) -> bytes:
    """Syft's RecursiveSerde with a blob in so many chunks, all the same."""
    text, data = _split(kind.encode() + b"\0"), _split(chunk)
    start = 6 + len(text)  # of the data; the pointers to it come last
    words = [struct.pack("<HHHH", 0, 0, 1, 4), struct.pack("<Q", 1), bytes(8), bytes(8)]
    words += [_pointer(LIST, start + len(data) - 5, POINTERS, pointers), _pointer(LIST, 0, BYTES, len(kind) + 1), *text, *data]
    words += [_pointer(LIST, start - (place + 1), BYTES, len(chunk)) for place in range(len(words), len(words) + pointers)]
    return _framed(words)


def _pointer(kind: int, offset: int, size: int, count: int) -> bytes:
    """To a list of so many elements, or (size words, count pointers) to a struct; offset in words from the pointer's end."""
    return struct.pack("<II", (offset & 0x3FFF_FFFF) << 2 | kind, count << 16 | size if kind == STRUCT else count << 3 | size)


def _split(data: bytes) -> list[bytes]:
    return [data[start : start + 8].ljust(8, b"\0") for start in range(0, len(data), 8)]


def _framed(words: list[bytes]) -> bytes:
    return struct.pack("<II", 0, len(words)) + b"".join(words)
