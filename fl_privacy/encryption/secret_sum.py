"""The owner's half of the secure sum: protect one update; open the sum of a whole cohort.

update -> weight and quantise -> pack, checks -> masks modulo t -> encrypt. The sum is opened the other way round: the pairwise
masks have cancelled, the self-masks are subtracted, and guard bits and check coefficients say whether this is the sum of the
whole cohort (``encryption.checks``: what they detect, and how surely).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import tenseal.sealapi as seal

from fl_privacy.encryption import cipher, ckks
from fl_privacy.encryption.checks import CheckLane
from fl_privacy.encryption.cipher import Kind, Scratch
from fl_privacy.encryption.keys import Identity, check_author, key_name, load_secret_key
from fl_privacy.encryption.masks import SEED_BYTES, Mask, PairwiseMask, UniformStream, self_mask_seed
from fl_privacy.encryption.packing import (
    DATA,
    DEGREE,
    Fields,
    block_count,
    check_encoding,
    coordinates_per_block,
    pack,
)
from fl_privacy.encryption.quantise import dequantise_sum, quantise
from fl_privacy.encryption.registry import Registry, check_cohort
from fl_privacy.errors import CohortMismatch, KeyMissing
from fl_privacy.parameters import Vector
from fl_privacy.round_order import Encoding, RoundOrder


def protect_update(
    update: Vector,
    order: RoundOrder,
    owner: str,
    identity: Identity,
    registry: Registry,
    secret_key: bytes,
    self_mask: bytes,
    file: BinaryIO,
) -> None:
    """Weight, quantise, mask and encrypt one owner's update into ``file``. Call it once per order and keep the result.

    Args: update (order.coordinates,), unweighted; the weight is weights[k] / sum(weights). Coordinates beyond
        encoding.value_range are clipped, after weighting (CKKS: before). self_mask is b_k, 32 fresh random bytes; CKKS has no
        masks and ignores it. file receives the container, bound to the order, block by block; when this raises, what it
        holds is of no use.
    Raises: CohortTooSmall, CohortMismatch, EncodingOverflow, DigestMismatch (registry), KeyMissing, EncryptionError.
    Privacy: adds no noise; epsilon comes from DP-SGD. Hides the update from the aggregator and up to K - 2 colluding owners of
        the cohort, and until b_k is revealed from everybody; two updates protected under one order with one b_k would reveal
        their difference to any other owner. CKKS orders: only what ``encryption.ckks`` says.
    Source: Bonawitz et al. 2017 (masks), Fan and Vercauteren 2012 (BFV).
    """
    if order.encoding.scheme == "ckks":
        ckks.protect_update(update, order, owner, identity, registry, secret_key, file)
        return
    check_cohort(order)
    encoding = check_encoding(order)
    check_author(update, order, owner, identity, registry)
    bits = encoding.modulus_bits
    encryptor, plain = seal.Encryptor(cipher.context(bits), _named_key(order, secret_key, bits)), seal.Plaintext()
    pairwise = PairwiseMask(order, owner, identity.agreement_key, registry)
    own = Mask([self_mask_seed(self_mask, order.digest(), owner)])
    weight, lane = order.weights[order.cohort.index(owner)] / sum(order.weights), CheckLane(order, secret_key)
    coefficients = np.empty(DEGREE, np.uint64)
    cipher.write_header(file, Kind.UPDATE, order, sorted(order.cohort).index(owner))
    with Scratch() as scratch:
        for index, fields in enumerate(_quantised_blocks(update, weight, encoding)):
            coefficients[:DATA] = pack(fields, encoding)
            coefficients[DATA:] = lane.checks(index, fields)
            coefficients += pairwise.block(index)
            coefficients += own.block(index)
            coefficients &= cipher.modulo(bits)
            cipher.load_plaintext(plain, coefficients, bits, scratch)
            file.write(cipher.save_update(encryptor.encrypt_symmetric(plain), bits, scratch))


def representable(update: Vector, order: RoundOrder, owner: str) -> Vector:
    """The update as a sum of this order holds it, for an owner that has to know what it adds: clipped, and rounded.

    ``protect_update`` of the result adds exactly it but for float32: hardly a coordinate in 2**14 comes out a step apart. CKKS
    only clips. Returns: unweighted, (order.coordinates,). Raises: EncodingOverflow.
    Privacy: post-processing, with rounding that does not depend on the data (``quantise``).
    """
    encoding, weight = order.encoding, order.weights[order.cohort.index(owner)] / sum(order.weights)
    if encoding.scheme == "ckks":
        reach = np.float32(encoding.value_range)
        return np.clip(update, -reach, reach)
    blocks = [dequantise_sum(fields, encoding, 1) for fields in _quantised_blocks(update, weight, encoding)]
    rounded: Vector = np.concatenate(blocks) / np.float32(weight)
    return rounded


def open_sum(total: BinaryIO, order: RoundOrder, secret_key: bytes, self_masks: Sequence[bytes]) -> Vector:
    """Decrypt the sum of a whole cohort; never one owner's update.

    The caller answers one total per order only: BFV does not withstand an aggregator that may try many.

    Args: total must be seekable; self_masks b_k of every owner in the order of ``order.cohort`` (CKKS has none).
    Returns: sum over owners of p_k * update_k, float32 (order.coordinates,), off by less than K / scale per coordinate.
    Raises: CiphertextInvalid, ChecksumMismatch, CohortTooSmall, CohortMismatch (not one self-mask per owner), EncodingOverflow,
        KeyMissing.
    Privacy: adds no noise; epsilon comes from each owner's DP-SGD. Anything but a whole cohort's sum is still masked.
    Source: Bonawitz et al. 2017 (masks), Fan and Vercauteren 2012 (BFV).
    """
    if order.encoding.scheme == "ckks":
        return ckks.open_sum(total, order, secret_key)
    check_cohort(order)
    encoding, cohort_size = check_encoding(order), len(order.cohort)
    if len(self_masks) != cohort_size:
        raise CohortMismatch(f"{len(self_masks)} self-masks for {cohort_size} owners; the sum stays masked without all of them")
    bits = encoding.modulus_bits
    decryptor, plain = seal.Decryptor(cipher.context(bits), _named_key(order, secret_key, bits)), seal.Plaintext()
    digest, lane = order.digest(), CheckLane(order, secret_key)
    masks = Mask(self_mask_seed(seed, digest, owner) for seed, owner in zip(self_masks, order.cohort, strict=True))
    cipher.read_header(total, Kind.TOTAL, order)
    opened, step = np.empty(order.coordinates, np.float32), coordinates_per_block(encoding)
    with Scratch() as scratch:
        for index in range(block_count(order)):
            (block,) = cipher.read_blocks(total, Kind.TOTAL, order, range(index, index + 1))
            decryptor.decrypt(cipher.load_block(block, bits, scratch), plain)
            coefficients = cipher.plaintext_coefficients(plain)
            coefficients -= masks.block(index)
            coefficients &= cipher.modulo(bits)
            piece = opened[index * step : (index + 1) * step]
            fields = lane.verified_fields(index, coefficients)
            piece[:] = dequantise_sum(fields[: piece.size], encoding, cohort_size)
    return opened


def _quantised_blocks(update: Vector, weight: float, encoding: Encoding) -> Iterator[Fields]:
    """The weighted update as fields, one ciphertext's worth at a time, so that memory does not grow with the model."""
    random, step = UniformStream(secrets.token_bytes(SEED_BYTES)), coordinates_per_block(encoding)
    for index, start in enumerate(range(0, update.size, step)):
        piece = update[start : start + step]
        dither = random.block(index, -(-piece.size // 4)).view(np.uint16)[: piece.size]
        yield quantise(piece, weight, encoding, dither)


def _named_key(order: RoundOrder, secret_key: bytes, modulus_bits: int) -> Any:
    """The SEAL key, which must be the one that the order names. Raises: KeyMissing."""
    key = load_secret_key(secret_key, modulus_bits)
    name = key_name(secret_key)
    if name != order.key:
        raise KeyMissing(f"the order is for HE key {order.key[:16]}…, this owner has {name[:16]}…; deal one key to all owners")
    return key
