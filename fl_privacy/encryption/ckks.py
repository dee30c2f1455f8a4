"""The owner's half of CKKS sums, for cohorts that want floats and whose owners allow it. It protects less than masked BFV.

update -> clip -> weight -> check slots -> encrypt; a sum is opened the other way round.

What is weaker than in ``secret_sum``
- No masks exist, and all owners hold one key. Any single owner who gets hold of another owner's ciphertext (the aggregator
  and one owner together always do) reads that update. What is left then is the noise of DP-SGD that is already in it.
- Sums are approximate: before rounding to float32 each coordinate is off by 1.9e-10 * sqrt(K) (standard deviation).
- Opened sums leak about the key: a CKKS decryption holds the encryption noise, so whoever has the total and its opened values,
  which is the scientist, has approximate linear equations in the key (IND-CPA^D, Li and Micciancio 2021). The security
  level of the parameters is not claimed for a key of which sums have been opened. Rounding to float32 does not mend this: the
  step of a float32 near 0.001 is 1e-10, less than the noise. What it does: owners whose processors differ in the last
  digits of a double all but always open the same values.

What a malicious aggregator may do without any owner's key, and what finds it
It can calculate on ciphertexts: scale, repeat or leave out terms, multiply single slots by numbers of its choice, add
numbers, swap vectors. So eight check slots of each vector hold tags over its other slots x, for owner k:
T_m = sum_i r_mi x_i + v_km, m = 1..8, with all r_mi and v_km uniform on [-1, 1], derived from key, order and block. An opened
vector X must have T_m = sum_i r_mi X_i + sum_k v_km within a tolerance tau, for all m. (Values that do not depend on x would
find scaled and partial sums, but not factors that act on the other slots only.)
- Found: an opened slot that is off by delta passes with probability at most (tau (1 + value_range) / delta)**8, whatever
  factor the aggregator gave to each slot of each owner and whatever it added: partial sums, K times one owner, terms repeated
  or scaled, factors per slot. Vectors out of place, other orders and other keys have other r and v.
- Not found: changes below tau, which is 1.5e-7 for K = 3 and 8.4e-7 for K = 100; and whatever a holder of the key does.
Source: Cheon, Kim, Kim and Song 2017 (CKKS); Agrawal and Boneh 2009, section 4 (homomorphic MACs; here over reals).
"""

from __future__ import annotations

import math
from typing import Any, BinaryIO

import numpy as np
import tenseal as ts
from numpy.typing import NDArray

from fl_privacy.encryption import ckks_wire as wire
from fl_privacy.encryption.ckks_wire import CHECK_SLOTS, DATA_SLOTS, DEGREE, SCALE
from fl_privacy.encryption.keys import Identity, check_author, key_name
from fl_privacy.encryption.masks import derive_seed, uniform
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import ChecksumMismatch, EncodingOverflow, KeyMissing
from fl_privacy.parameters import Vector
from fl_privacy.round_order import RoundOrder

Reals = NDArray[np.float64]

NOISE_TAIL = 12  # standard deviations; an honest sum is refused with p < 2**-100
_HALF = 2.0**63
_SECRET_KEY_BYTES = 3 * DEGREE * 8 + 72  # one polynomial modulo three primes, and SEAL's members


def generate_key() -> bytes:
    """A fresh CKKS key, which all owners share: a TenSEAL context with its secret key."""
    return wire.serialised(wire.new_context(), secret_key=True)


def check_key(key: bytes) -> None:
    """Raise KeyMissing when the bytes are not a TenSEAL context of exactly these parameters with a secret key."""
    _load_key(key)


def protect_update(
    update: Vector, order: RoundOrder, owner: str, identity: Identity, registry: Registry, secret_key: bytes, file: BinaryIO
) -> None:
    """Clip, weight and encrypt one owner's update, vector by vector.

    Args: update (order.coordinates,), unweighted; clipped to [-value_range, value_range], then multiplied by
        weights[k] / sum(weights). ``file`` receives about 57.5 bytes per parameter.
    Raises: CohortTooSmall, CohortMismatch, EncodingOverflow (also when not finite), DigestMismatch (registry), KeyMissing,
        EncryptionError.
    Privacy: adds no noise; epsilon comes from DP-SGD. Hides the update from whoever lacks the key, and from no other owner.
    Source: Cheon, Kim, Kim and Song 2017.
    """
    wire.check_order(order)
    check_author(update, order, owner, identity, registry)
    context, lane = _named_key(order, secret_key), CheckLane(order, secret_key)
    position, limit = sorted(order.cohort).index(owner), order.encoding.value_range
    weight = order.weights[order.cohort.index(owner)] / sum(order.weights)
    wire.write_header(file, wire.UPDATE, order, position)
    for block in range(wire.vector_count(order)):
        piece = update[block * DATA_SLOTS : (block + 1) * DATA_SLOTS].astype(np.float64)
        if not np.isfinite(piece).all():
            raise EncodingOverflow("a coordinate of the update is not finite; training diverged")
        data = np.zeros(DATA_SLOTS)
        data[: piece.size] = weight * np.clip(piece, -limit, limit)
        slots = np.concatenate([data, lane.tags(block, data, position)])
        wire.write_vector(file, ts.ckks_vector(context, slots.tolist()))


def open_sum(total: BinaryIO, order: RoundOrder, secret_key: bytes) -> Vector:
    """Decrypt the sum of a whole cohort, vector by vector.

    The caller answers one total per order only: an aggregator that may try many learns from refusals.

    Returns: sum over owners of p_k * update_k, float32 (order.coordinates,), off by about 2e-10 * sqrt(K) and the rounding.
    Raises: CiphertextInvalid, ChecksumMismatch, CohortTooSmall, CohortMismatch, EncryptionError, EncodingOverflow, KeyMissing.
    Privacy: adds no noise; epsilon comes from each owner's DP-SGD. The values leak about the key; see the module.
    Source: Cheon, Kim, Kim and Song 2017; Li and Micciancio 2021.
    """
    wire.check_order(order)
    context, lane = _named_key(order, secret_key), CheckLane(order, secret_key)
    wire.read_header(total, wire.TOTAL, order)
    opened: Vector = np.empty(order.coordinates, np.float32)
    for block in range(wire.vector_count(order)):
        slots = np.array(wire.read_vector(total, context).decrypt())
        lane.check(block, slots)
        piece = opened[block * DATA_SLOTS : (block + 1) * DATA_SLOTS]
        piece[:] = slots[: piece.size]
    wire.check_end(total)
    return opened


def slot_noise(cohort_size: int) -> float:
    """Standard deviation of one opened slot: SEAL's centred binomial error (variance 21/2) and rounding, K times.

    The real part of a slot is sum_j e_j cos(j theta) / scale over N coefficients, and cos**2 is 1/2 on average.
    """
    return math.sqrt(cohort_size * DEGREE / 2 * (21 / 2 + 1 / 12)) / SCALE


def _named_key(order: RoundOrder, key: bytes) -> Any:
    """The context of a key, which must be the one that the order names. Raises: KeyMissing."""
    context, name = _load_key(key), key_name(key)
    if name != order.key:
        raise KeyMissing(f"the order is for HE key {order.key[:16]}…, this one is {name[:16]}…; deal one key to all owners")
    return context


def _load_key(key: bytes) -> Any:
    """Load a key after checking every byte around its compressed part. Raises: KeyMissing."""
    parameters, encryption_type = wire.parameters()[:-2], wire.parameters()[-2:]
    secret = key[len(parameters) + 8 : -2]
    head = parameters + b"\x1a" + wire.varint(len(secret) + 4) + b"\x0a" + wire.varint(len(secret))
    if not (key.startswith(head) and key.endswith(encryption_type) and wire.is_seal_object(secret, _SECRET_KEY_BYTES)):
        raise KeyMissing("the CKKS key is missing or was made for other parameters; have it dealt again")
    try:
        return ts.context_from(key, n_threads=1)
    except wire.FOREIGN:
        raise KeyMissing("the CKKS key is damaged; have it dealt again") from None


class CheckLane:
    """The check slots of one order, made by owners and verified when a sum is opened; see the module for what they detect."""

    def __init__(self, order: RoundOrder, secret_key: bytes) -> None:
        self._order = order
        self._seed = derive_seed(secret_key, "ckks-check", order.digest())
        # a tag's own noise, and that of 4088 slots weighted by numbers of variance 1/3
        self.tolerance = NOISE_TAIL * slot_noise(len(order.cohort)) * math.sqrt(1 + DATA_SLOTS / 3)

    def tags(self, block: int, data: Reals, position: int) -> Reals:
        """The check slots (8,) of one owner's vector. Args: data (4088,), position in the sorted cohort."""
        weights, own = self._secrets(block)
        tags: Reals = weights @ data + own[position]
        return tags

    def check(self, block: int, slots: Reals) -> None:
        """Verify an opened vector (4096,). Raises: ChecksumMismatch."""
        weights, own = self._secrets(block)
        data, tags = slots[:DATA_SLOTS], slots[DATA_SLOTS:]
        excess = np.abs(weights @ data + own.sum(axis=0) - tags).max()
        limit = self._order.encoding.value_range + self.tolerance
        if not (excess <= self.tolerance and np.abs(data).max() <= limit):  # not a number is refused too
            raise ChecksumMismatch(f"vector {block} is not the sum of the whole cohort for order {self._order.digest()[:16]}…")

    def _secrets(self, block: int) -> tuple[Reals, Reals]:
        """r (8, 4088) and v (K, 8), uniform on [-1, 1]."""
        cohort_size = len(self._order.cohort)
        words = uniform(self._seed, block, CHECK_SLOTS * (DATA_SLOTS + cohort_size))
        weights, own = np.split(words.view(np.int64) / _HALF, [CHECK_SLOTS * DATA_SLOTS])
        return weights.reshape(CHECK_SLOTS, DATA_SLOTS), own.reshape(cohort_size, CHECK_SLOTS)
