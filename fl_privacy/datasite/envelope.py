"""The envelope of a signed call, read without Syft and without Cap'n Proto's library: anybody may send one.

pycapnp 2.0 crashes on a text without its closing zero byte, so one byte of a stranger's request would end the datasite. This
reader takes what Syft's own encoder writes, and nothing else: one chunk of bytes per value, no pointer over two hops. It is
Python throughout, so that damaged bytes end in an exception. Format: https://capnproto.org/encoding.html.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from syft.client.api import SignedSyftAPICall
from syft.server.credentials import SyftVerifyKey

from fl_privacy.errors import MessageError, SignatureInvalid

WORD = 8  # bytes
STRUCT, LIST, FAR = 0, 1, 2  # kinds of pointers
BYTES, POINTERS = 2, 6  # sizes of a list's elements
FIELD_NAMES, FIELD_DATA, BLOB, KIND = range(4)  # pointers of Syft's struct RecursiveSerde, which has one word of numbers before
KEY_BYTES, SIGNATURE_BYTES = 32, 64
MOST_FIELDS = 3  # of one object; several pointers may lead to the same bytes, and each reads them anew
MOST_SEGMENTS = 512  # as in Cap'n Proto's own library


def read_envelope(body: bytes) -> SignedSyftAPICall:
    """A signed call whose signature holds; the message inside is not decoded.

    Raises: MessageError when the bytes are anything else than a key, a signature and a message, SignatureInvalid.
    """
    try:
        fields = read_record(body, "SignedSyftAPICall").fields
        key = _only_blob(read_record(fields["credentials"], "SyftVerifyKey").fields["verify_key"], "nacl_verify_key")
        message, signature = (_only_blob(fields[name], "bytes") for name in ("serialized_message", "signature"))
        if len(fields) != 3 or len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
            raise ValueError
    except (ValueError, KeyError, struct.error):
        raise MessageError("the request is no signed call") from None
    credentials = SyftVerifyKey.from_string(key.hex())
    call = SignedSyftAPICall(credentials=credentials, serialized_message=message, signature=signature)
    if not call.is_valid:
        raise SignatureInvalid("the signature of the call does not verify")
    return call


@dataclass(frozen=True)
class Record:
    """One object as Syft encodes it: either named fields, each encoded in turn, or one blob."""

    fields: dict[str, bytes]
    blob: bytes | None


def read_record(data: bytes, kind: str) -> Record:
    """Read one object of the kind (Syft's canonical name). Raises: ValueError or struct.error for anything else."""
    message = _Message(data)
    if message.text(message.root(KIND)) != kind:
        raise ValueError(f"not a {kind}")
    names = [message.text(each) for each in message.pointers(message.root(FIELD_NAMES))]
    values = [message.chunk(each) for each in message.pointers(message.root(FIELD_DATA))]
    blob = message.root(BLOB)
    return Record(dict(zip(names, values, strict=True)), None if message.is_null(blob) else message.chunk(blob))


def _only_blob(data: bytes, kind: str) -> bytes:
    record = read_record(data, kind)
    if record.fields or record.blob is None:
        raise ValueError(f"not one {kind}")
    return record.blob


Place = tuple[int, int]  # of a pointer: number of its segment, and offset in bytes


class _Message:
    """The segments of one message, and what the pointers in it lead to."""

    def __init__(self, data: bytes) -> None:
        view, count = memoryview(data), struct.unpack_from("<I", data)[0] + 1
        if count > MOST_SEGMENTS:
            raise ValueError("too many segments")
        self._segments: list[memoryview] = []
        start = (4 + 4 * count + WORD - 1) // WORD * WORD
        for words in struct.unpack_from(f"<{count}I", data, 4):
            self._segments.append(view[start : start + words * WORD])
            start += words * WORD
        if start != len(data):
            raise ValueError("the segments are not as long as the message")

    def root(self, pointer: int) -> Place:
        """Where the root struct keeps one of its pointers."""
        low, high, (segment, start) = self._follow((0, 0))
        if low & 3 != STRUCT or high != 4 << 16 | 1:
            raise ValueError("another struct")
        return segment, start + WORD * (1 + pointer)

    def is_null(self, place: Place) -> bool:
        return self._pair(place) == (0, 0)

    def pointers(self, place: Place) -> list[Place]:
        """The places of a list's pointers; none for a list that was never written."""
        if self.is_null(place):
            return []
        count, (segment, start) = self._list(place, POINTERS)
        if count > MOST_FIELDS:
            raise ValueError("too many values")
        return [(segment, start + WORD * number) for number in range(count)]

    def chunk(self, place: Place) -> bytes:
        """The bytes of a value, which Syft would split only above 512 MB."""
        (only,) = self.pointers(place)
        return self._bytes(only)

    def text(self, place: Place) -> str:
        raw = self._bytes(place)
        if raw[-1:] != b"\0":
            raise ValueError("a text without its closing zero byte")
        return raw[:-1].decode()

    def _bytes(self, place: Place) -> bytes:
        if self.is_null(place):
            return b""
        count, start = self._list(place, BYTES)
        return bytes(self._cut(start, count))

    def _list(self, place: Place, element: int) -> tuple[int, Place]:
        low, high, start = self._follow(place)
        if low & 3 != LIST or high & 7 != element:
            raise ValueError("another list")
        return high >> 3, start

    def _follow(self, place: Place) -> tuple[int, int, Place]:
        """Both halves of a pointer, of the one in the other segment if it only leads there, and the place of its target."""
        low, high = self._pair(place)
        if low & 7 == FAR:  # with bit 2 set it would lead over two hops
            place = high, (low >> 3) * WORD
            low, high = self._pair(place)
        segment, at = place
        offset = ((low >> 2) ^ 0x2000_0000) - 0x2000_0000  # 30 bits with a sign, in words from the pointer's end
        return low, high, (segment, at + WORD + offset * WORD)

    def _pair(self, place: Place) -> tuple[int, int]:
        low, high = struct.unpack("<II", self._cut(place, WORD))
        return low, high

    def _cut(self, place: Place, size: int) -> memoryview:
        number, start = place
        if number >= len(self._segments) or not 0 <= start <= len(self._segments[number]) - size:
            raise ValueError("a pointer out of the message")
        return self._segments[number][start : start + size]
