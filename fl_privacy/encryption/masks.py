"""Masks modulo t = 2**b: they hide each update from the other owners, who all hold the key of the ciphertexts.

Pairwise: owners j < k share s_jk = HKDF(X25519(j, k)), bound to the order's digest R_t and both names. In the sorted cohort
m_k = sum_{j > k} PRG(s_kj) - sum_{j < k} PRG(s_jk) mod t, hence the masks of a whole cohort cancel and those of a part do not.
Self-mask: PRG(b_k) with a fresh seed b_k, which is revealed only when the whole cohort has signed one survivor list; until
then even the sum of the whole cohort stays uniform (``encryption.agreement``).
Source: Bonawitz et al. 2017, section 4 (without secret sharing: a dropped owner voids the attempt).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_privacy.encryption.packing import DEGREE, Words
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import CohortMismatch, EncryptionError
from fl_privacy.round_order import RoundOrder

SEED_BYTES = 32
_ROOM = 2  # words behind the values: the AES interface asks for 15 spare bytes


def derive_seed(secret: bytes, *context: str) -> bytes:
    """HKDF-SHA256 to 32 bytes; ``context`` says what for, its parts hold no NUL byte."""
    info = "\0".join(("fl_privacy/v1", *context)).encode()
    return HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=None, info=info).derive(secret)


def self_mask_seed(self_mask: bytes, order: str, owner: str) -> bytes:
    """The seed of an owner's self-mask stream from b_k; ``order`` is R_t in hex. Raises: EncryptionError (not 32 bytes)."""
    if len(self_mask) != SEED_BYTES:
        raise EncryptionError(f"the self-mask of {owner!r} is no seed of {SEED_BYTES} bytes")
    return derive_seed(self_mask, "self-mask", order, owner)


def uniform(seed: bytes, block: int, count: int) -> Words:
    """The first ``count`` words of one block of a stream, uint64; see ``UniformStream``."""
    return UniformStream(seed).block(block, count)


class UniformStream:
    """Uniform 64-bit words from a 32-byte seed, in blocks that can be read in any order.

    Block i is AES-256-CTR from the counter i * 2**64 (16 bytes, big-endian), read as little-endian 64-bit words.
    """

    def __init__(self, seed: bytes) -> None:
        self._keystream = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()

    def block(self, index: int, count: int) -> Words:
        """The first ``count`` words of one block."""
        return self.fill(index, np.empty(count + _ROOM, "<u8"))

    def fill(self, index: int, scratch: Words) -> Words:
        """The same, without new memory: as many words as ``scratch`` has, less two; they lie within it."""
        words = scratch[:-_ROOM]
        self._keystream.reset_nonce(index.to_bytes(8, "big") + bytes(8))
        self._keystream.update_into(_zeros(words.nbytes), scratch.view(np.uint8).data)
        return words


class Mask:
    """A sum of streams modulo 2**64, block by block: those of the ``added`` seeds less those of the ``subtracted`` ones.

    t = 2**b divides 2**64, so reducing words modulo t keeps sums, and each residue has 2**(64 - b) words: values modulo t are
    exactly uniform if the words are. No word has to be rejected, and one cut to b bits after all sums is enough.
    """

    def __init__(self, added: Iterable[bytes], subtracted: Iterable[bytes] = ()) -> None:
        self._added = [UniformStream(seed) for seed in added]
        self._subtracted = [UniformStream(seed) for seed in subtracted]
        self._scratch = np.empty(DEGREE + _ROOM, "<u8")

    def block(self, index: int) -> Words:
        """The mask of all coefficients of one ciphertext, uint64 (DEGREE,), not yet reduced modulo t."""
        total = np.zeros(DEGREE, np.uint64)
        for stream in self._added:
            total += stream.fill(index, self._scratch)
        for stream in self._subtracted:
            total -= stream.fill(index, self._scratch)
        return total


class PairwiseMask(Mask):
    """The mask m_k of one owner for one order.

    Privacy: indistinguishable from uniform modulo t unless all other owners of the cohort collude. Two vectors under the same
    mask reveal their difference, so an order must be protected once only.
    """

    def __init__(self, order: RoundOrder, owner: str, agreement_key: X25519PrivateKey, registry: Registry) -> None:
        if owner not in order.cohort:
            raise CohortMismatch(f"{owner!r} is not in the order's cohort")
        digest = order.digest()
        seeds = {
            peer: derive_seed(_agree(agreement_key, registry, peer), "mask", digest, *sorted((owner, peer)))
            for peer in order.cohort
            if peer != owner
        }
        added = [seed for peer, seed in seeds.items() if peer > owner]
        subtracted = [seed for peer, seed in seeds.items() if peer < owner]
        super().__init__(added, subtracted)


def _agree(own: X25519PrivateKey, registry: Registry, peer: str) -> bytes:
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(registry.card(peer).agreement_key)))
    except ValueError:  # a point of low order, which would make the shared secret public
        raise EncryptionError(f"the agreement key of {peer!r} is not usable; the owner must enrol with a new card") from None


@lru_cache(maxsize=4)
def _zeros(size: int) -> bytes:
    return bytes(size)
