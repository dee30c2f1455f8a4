"""Pairwise masks over Z_t: they hide each update from the other owners, who all hold the key of the ciphertexts.

Owners j < k share s_jk = HKDF(X25519(j, k)), bound to the order's digest R_t and both names. In the sorted cohort
m_k = sum_{j > k} PRG(s_kj) - sum_{j < k} PRG(s_jk) mod t, hence the masks of a whole cohort cancel and those of a part do not.
Source: Bonawitz et al. 2017, section 4 (without self-masks and secret sharing: a dropped owner voids the attempt).
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_privacy.encryption.packing import Slots
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import CohortMismatch, EncryptionError
from fl_privacy.messages import RoundOrder


def derive_seed(secret: bytes, *context: str) -> bytes:
    """HKDF-SHA256 to 32 bytes; ``context`` says what for, its parts hold no NUL byte."""
    info = "\0".join(("fl_privacy/v1", *context)).encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


class UniformStream:
    """Uniform integers modulo t from a 32-byte seed: AES-256-CTR from counter zero, rejection of words that are not below t.

    The keystream is read as little-endian 64-bit words, cut to the bits of t. How many are taken at a time does not matter.
    """

    def __init__(self, seed: bytes, modulus: int) -> None:
        self._keystream = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
        self._modulus = np.uint64(modulus)
        self._bits = np.uint64((1 << modulus.bit_length()) - 1)

    def take(self, count: int) -> Slots:
        """The next ``count`` values, uint64 below t."""
        found = np.empty(0, np.uint64)
        while found.size < count:  # t is just below a power of two: a second pass is rare
            words = np.frombuffer(self._keystream.update(bytes(8 * (count - found.size))), "<u8") & self._bits
            found = np.concatenate([found, words[words < self._modulus]])
        return found


class PairwiseMask:
    """The mask m_k of one owner for one order, produced from the first slot to the last.

    Privacy: indistinguishable from uniform on Z_t unless all other owners of the cohort collude. Two vectors under the same
    mask reveal their difference, so an order must be protected once only.
    """

    def __init__(
        self, order: RoundOrder, owner: str, agreement_key: X25519PrivateKey, registry: Registry, modulus: int
    ) -> None:
        cohort, digest = sorted(order.cohort), order.digest()
        if owner not in cohort:
            raise CohortMismatch(f"{owner!r} is not in the order's cohort")
        self._modulus = np.uint64(modulus)
        self._added: list[UniformStream] = []
        self._subtracted: list[UniformStream] = []
        for peer in cohort:
            if peer == owner:
                continue
            shared = _agree(agreement_key, registry.card(peer).agreement_key, peer)
            stream = UniformStream(derive_seed(shared, "mask", digest, *sorted((owner, peer))), modulus)
            (self._added if peer > owner else self._subtracted).append(stream)

    def take(self, count: int) -> Slots:
        """The mask of the next ``count`` slots, uint64 below t."""
        mask = np.zeros(count, np.uint64)  # t < 2**53, so thousands of terms fit 64 bits
        for stream in self._added:
            mask += stream.take(count)
        for stream in self._subtracted:
            mask += self._modulus - stream.take(count)
        return mask % self._modulus


def _agree(own: X25519PrivateKey, peer_key: str, peer: str) -> bytes:
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(peer_key)))
    except ValueError:  # a point of low order, which would make the shared secret public
        raise EncryptionError(f"the agreement key of {peer!r} is not usable; the owner must enrol with a new card") from None
