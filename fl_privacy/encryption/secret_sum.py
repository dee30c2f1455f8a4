"""The owner's half of the secure sum: protect one update; open the sum of a whole cohort.

update -> weight -> quantise -> pack -> check slots -> mask modulo t -> encrypt; the sum is opened the other way round, and
the masks have cancelled. Check slots hold values derived from the HE secret key, the order and the place: K times them
must come out, which fails (with probability 1 - t**-2 per ciphertext) for partial sums, repeated or scaled terms, blocks
out of place, other orders, and other keys.

BFV sums can be changed by whoever carries them: an aggregator could add to data slots unseen. Check slots detect mistakes and
mixed-up rounds; a wrong sum by design is found only by adding the signed ciphertexts again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tenseal.sealapi as seal

from fl_privacy.encryption import cipher
from fl_privacy.encryption.keys import Identity, is_registered, load_secret_key
from fl_privacy.encryption.masks import PairwiseMask, UniformStream, derive_seed
from fl_privacy.encryption.packing import (
    CHECK_SLOTS,
    DATA_SLOTS,
    DEGREE,
    check_encoding,
    coordinates_per_block,
    pack,
    unpack,
)
from fl_privacy.encryption.quantise import dequantise_sum, quantise
from fl_privacy.encryption.registry import Registry, check_cohort, check_registry
from fl_privacy.errors import ChecksumMismatch, CohortMismatch, EncryptionError, KeyMissing
from fl_privacy.messages import RoundOrder
from fl_privacy.parameters import Vector, count


def protect_update(
    update: Vector, order: RoundOrder, owner: str, identity: Identity, registry: Registry, secret_key: bytes
) -> bytes:
    """Weight, quantise, mask and encrypt one owner's update. Call it once per order and keep the result.

    Args: update (count(order.tensors),), unweighted; the weight is weights[k] / sum(weights). Coordinates beyond
        encoding.value_range after weighting are clipped.
    Returns: the container, bound to the order.
    Raises: CohortTooSmall, CohortMismatch, EncodingOverflow, DigestMismatch (registry), KeyMissing, EncryptionError.
    Privacy: adds no noise; epsilon comes from DP-SGD. Hides the update from the aggregator and up to K - 2 colluding owners of
        the cohort; two updates protected under one order would reveal their difference to any other owner.
    Source: Bonawitz et al. 2017 (masks), Fan and Vercauteren 2012 (BFV).
    """
    check_cohort(order)
    check_encoding(order)
    check_registry(order, registry)
    if owner not in order.cohort:
        raise CohortMismatch(f"{owner!r} is not in the order's cohort")
    if not is_registered(identity, owner, registry):
        raise KeyMissing(f"this identity, or this TenSEAL, is not the one that the registry has for {owner!r}")
    if update.shape != (count(order.tensors),):
        raise EncryptionError(f"an update of shape {update.shape} does not fit {count(order.tensors)} coordinates")
    blocks = _encrypted_blocks(update, order, owner, identity, registry, secret_key)
    return cipher.write_container(cipher.UPDATE, order, sorted(order.cohort).index(owner), blocks)


def open_sum(total: bytes, order: RoundOrder, secret_key: bytes) -> Vector:
    """Decrypt the sum of a whole cohort; never one owner's update.

    The caller answers one total per order only: BFV does not withstand an aggregator that may try many.

    Returns: sum over owners of p_k * update_k, float32 (count(order.tensors),), off by less than K / scale per coordinate.
    Raises: CiphertextInvalid, ChecksumMismatch, CohortTooSmall, CohortMismatch, EncodingOverflow, KeyMissing.
    Privacy: adds no noise; epsilon comes from each owner's DP-SGD. Anything but a whole cohort's sum is still masked.
    Source: Bonawitz et al. 2017 (masks), Fan and Vercauteren 2012 (BFV).
    """
    check_cohort(order)
    check_encoding(order)
    _, blocks = cipher.read_container(total, cipher.TOTAL, order)
    encoding, cohort_size = order.encoding, len(order.cohort)
    modulus = cipher.plain_modulus(encoding.modulus_bits)
    chain = cipher.context(encoding.modulus_bits)
    decryptor = seal.Decryptor(chain, load_secret_key(secret_key, encoding.modulus_bits))
    encoder, plain, checks = seal.BatchEncoder(chain), seal.Plaintext(), _check_values(order, secret_key, modulus)
    opened: Vector = np.empty(count(order.tensors), np.float32)
    step = coordinates_per_block(encoding)
    for index, block in enumerate(blocks):
        decryptor.decrypt(cipher.load_block(block, cipher.TOTAL, encoding.modulus_bits), plain)
        slots = np.array(encoder.decode_uint64(plain), np.uint64)
        expected = [cohort_size * int(value) % modulus for value in checks.take(CHECK_SLOTS)]
        if slots[DATA_SLOTS:].tolist() != expected or int(slots[:DATA_SLOTS].max()) >> (modulus.bit_length() - 1):
            raise ChecksumMismatch(f"block {index} is not the sum of the whole cohort for order {order.digest()[:16]}…")
        piece = opened[index * step : (index + 1) * step]
        piece[:] = dequantise_sum(unpack(slots[:DATA_SLOTS], encoding)[: piece.size], encoding, cohort_size)
    return opened


def _encrypted_blocks(
    update: Vector, order: RoundOrder, owner: str, identity: Identity, registry: Registry, secret_key: bytes
) -> Iterator[bytes]:
    """One ciphertext at a time, so that memory does not grow with the model beyond the result."""
    encoding = order.encoding
    modulus, chain = cipher.plain_modulus(encoding.modulus_bits), cipher.context(encoding.modulus_bits)
    encryptor = seal.Encryptor(chain, load_secret_key(secret_key, encoding.modulus_bits))
    encoder, plain = seal.BatchEncoder(chain), seal.Plaintext()
    mask = PairwiseMask(order, owner, identity.agreement_key, registry, modulus)
    checks = _check_values(order, secret_key, modulus)
    weight = np.float32(order.weights[order.cohort.index(owner)] / sum(order.weights))
    step = coordinates_per_block(encoding)
    for start in range(0, update.size, step):
        slots = np.zeros(DEGREE, np.uint64)
        packed = pack(quantise(update[start : start + step] * weight, encoding), encoding)
        slots[: packed.size] = packed
        slots[DATA_SLOTS:] = checks.take(CHECK_SLOTS)
        masked = (slots + mask.take(DEGREE)) % np.uint64(modulus)
        encoder.encode(masked.tolist(), plain)
        yield cipher.save_update(encryptor.encrypt_symmetric(plain), encoding.modulus_bits)


def _check_values(order: RoundOrder, secret_key: bytes, modulus: int) -> UniformStream:
    return UniformStream(derive_seed(secret_key, "check", order.digest()), modulus)
