"""Choosing the encoding of a cohort, and packing several fields into one coefficient of the plaintext modulo t = 2**b.

An encoding is a function of cohort size, precision and range alone, so every party recomputes it and accepts no other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import log_ndtr

from fl_privacy.cohort_fields import MINIMAL_COHORT
from fl_privacy.errors import CohortTooSmall, EncodingOverflow
from fl_privacy.messages import Purpose, first_problem
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_order import CkksEncoding, Encoding, RoundOrder

Words = NDArray[np.uint64]  # coefficients modulo t or q, fields of a sum, words of a keystream
Fields = NDArray[np.uint16]  # fields of one owner, below 2**value_bits

DEGREE = 4096  # ring degree N: coefficients of one polynomial
COEFF_BITS = 60  # one ciphertext prime q just below 2**60; with N = 4096 above 192-bit security (HE standard, 2018)
POLYNOMIAL_BYTES = DEGREE * COEFF_BITS // 8  # of a ciphertext, beside a seed that stands for its random polynomial
SEED_BYTES = 64
MAXIMAL_COHORT = 100  # the largest sum that was measured to be exact
COUNT_BITS = 16  # of each count of an evaluation
HEADROOM = 6  # standard deviations of what is random in a count
CHECKS = 2  # coefficients per ciphertext that prove the sum; see ``encryption.checks``
DATA = DEGREE - CHECKS  # coefficients per ciphertext that carry fields
GUARD_BITS = 1  # zeros below the fields of a coefficient, which noise beyond its margin would change
NOISE_DEVIATION = math.sqrt(21 / 2 + 1 / 12)  # per owner: SEAL's centred binomial error, and the rounding of q/t * m
NOISE_TAIL = 8.5  # standard deviations of the summed noise below q / 2t; beyond them (p < 2**-55) a coefficient is wrong


def choose_encoding(cohort_size: int, value_bits: int, value_range: float) -> Encoding:
    """The one encoding for this many owners: as many fields per coefficient as the noise of their sum leaves room for.

    A field needs value_bits + ceil(log2 K) bits for the sum of K values; t is the power of two just large enough
    for the fields and the guard bit below them, which leaves the most room for noise.

    Args: cohort_size K; value_bits per coordinate; value_range the bound on each coordinate after weighting.
    Raises: CohortTooSmall below three owners, EncodingOverflow above a hundred or when not one field fits.
    Source: Fan and Vercauteren 2012, section 4 (noise of addition).
    """
    if cohort_size < MINIMAL_COHORT:
        raise CohortTooSmall(f"a sum over {cohort_size} owners does not hide one of them; {MINIMAL_COHORT} are needed")
    if cohort_size > MAXIMAL_COHORT:
        raise EncodingOverflow(f"{cohort_size} owners are more than {MAXIMAL_COHORT}; form the sum in smaller cohorts")
    room = COEFF_BITS - 1 - math.log2(NOISE_TAIL * NOISE_DEVIATION * math.sqrt(cohort_size))
    field_bits = value_bits + (cohort_size - 1).bit_length()
    fields = (math.floor(room) - GUARD_BITS) // field_bits
    if fields < 1:
        raise EncodingOverflow(
            f"{value_bits} bits for each of {cohort_size} owners do not fit a coefficient; use fewer update_bits"
        )
    try:
        return Encoding(
            value_range=value_range,
            value_bits=value_bits,
            field_bits=field_bits,
            fields_per_coefficient=fields,
            modulus_bits=fields * field_bits + GUARD_BITS,
        )
    except ValidationError as problem:
        raise EncodingOverflow(f"no encoding: {first_problem(problem)}") from None


def plan_encoding(plan: TrainingPlan, weights: Sequence[int], purpose: Purpose = "train") -> Encoding | CkksEncoding:
    """The encoding that a plan implies for a cohort: updates of at most ``update_range``, weighted by at most the largest p_k.

    BFV clips a weighted update, whose field is what overflows; CKKS clips before it weights. What is evaluated are counts per
    unit that an owner is expected to hold out (``counts_range``), in 16 bits.

    Args: weights are the cohort's declared sizes. Raises: CohortTooSmall, EncodingOverflow.
    """
    ranges, bits = [plan.update_range] * len(weights), plan.update_bits
    if purpose == "evaluate":
        ranges, bits = [counts_range(plan, weight) for weight in weights], COUNT_BITS
    if plan.encryption == "ckks":
        return CkksEncoding(value_range=max(ranges))
    weighted = (reach * weight for reach, weight in zip(ranges, weights, strict=True))
    return choose_encoding(len(weights), bits, max(weighted) / sum(weights))


def counts_range(plan: TrainingPlan, declared_size: int) -> float:
    """A bound on one noised count of an evaluation at an owner, divided by the units that it is expected to hold out.

    Of n expected units, ``round_down`` of the declared size hides up to a tenth and chance may hold out more (6 deviations of
    a binomial); each adds at most ``evaluation_bound`` to a count, and the noise stays within 6 deviations, all but p < 1e-8.
    A step of the 16 bits is (1.1 n + 6 sqrt(1.1 n) + 6 noise) / 32767 bounds, and the deviation of stochastic rounding at most
    half of it: with noise 10, 1/480 of the noise's deviation for a thousand units held out, and half of that for 300 000.
    """
    expected = plan.holdout * declared_size
    most = 1.1 * expected + HEADROOM * (math.sqrt(1.1 * expected) + plan.evaluation_noise)
    return plan.evaluation_bound * most / expected


def bfv_encoding(order: RoundOrder) -> Encoding:
    """The order's encoding as integers. Raises: EncodingOverflow when the order is for CKKS, which sums floats."""
    if not isinstance(order.encoding, Encoding):
        raise EncodingOverflow(f"an order for {order.encoding.scheme} has no encoding as integers")
    return order.encoding


def check_encoding(order: RoundOrder) -> Encoding:
    """Refuse an order whose encoding is not the one for its cohort; sums in it could wrap silently.

    Returns: the encoding. Raises: CohortTooSmall, EncodingOverflow.
    """
    encoding = bfv_encoding(order)
    if encoding != choose_encoding(len(order.cohort), encoding.value_bits, encoding.value_range):
        raise EncodingOverflow(f"the order's encoding is not the one for {len(order.cohort)} owners: use choose_encoding")
    return encoding


def failure_log2(order: RoundOrder) -> float:
    """log2 of the probability that the sum decrypts wrongly, which guard bits and checks would then show.

    Union bound over all coefficients of all ciphertexts of 2 * Phi(-x): x = q / 2t in deviations of the summed noise, which is
    a sum of K independent centred binomials and roundings. Its far tail is lighter than this Gaussian one; with values
    of 8 bits it is even empty, since no owner adds more than 21.5 and 21.5 K is below q / 2t.

    Raises: EncodingOverflow (CKKS). Source: Fan and Vercauteren 2012, section 4.
    """
    edge = 2.0 ** (COEFF_BITS - 1 - bfv_encoding(order).modulus_bits)  # q / 2t, as q is a few thousand below 2**60
    tail = float(log_ndtr(-edge / (NOISE_DEVIATION * math.sqrt(len(order.cohort))))) / math.log(2)
    return tail + 1 + math.log2(DEGREE * block_count(order))


def coordinates_per_block(encoding: Encoding) -> int:
    """Coordinates that one ciphertext carries."""
    return DATA * encoding.fields_per_coefficient


def block_count(order: RoundOrder) -> int:
    """Ciphertexts that one update of this order fills."""
    return math.ceil(order.coordinates / coordinates_per_block(bfv_encoding(order)))


def pack(fields: Fields, encoding: Encoding) -> Words:
    """Put the fields of one block into its coefficients, guard bits zero; coordinate i goes to coefficient i modulo DATA.

    Args: fields (n,), at most coordinates_per_block; missing ones are zero. Returns: coefficients (DATA,), each below t.
    Raises: EncodingOverflow when a field does not fit its bits.
    """
    if fields.size and int(fields.max()) >> encoding.field_bits:
        raise EncodingOverflow(f"a field does not fit {encoding.field_bits} bits")
    size = coordinates_per_block(encoding)
    planes = (fields if fields.size == size else np.pad(fields, (0, size - fields.size))).reshape(-1, DATA)
    coefficients: Words = planes[-1].astype(np.uint64)
    for plane in planes[-2::-1]:  # the first plane lowest
        coefficients <<= np.uint64(encoding.field_bits)
        coefficients |= plane
    coefficients <<= np.uint64(GUARD_BITS)
    return coefficients


def unpack(coefficients: Words, encoding: Encoding) -> Words:
    """The inverse of ``pack``, also for sums. Args: coefficients (DATA,). Returns: fields (coordinates_per_block,)."""
    mask = np.uint64((1 << encoding.field_bits) - 1)
    shifts = np.arange(encoding.fields_per_coefficient, dtype=np.uint64) * np.uint64(encoding.field_bits) + np.uint64(
        GUARD_BITS
    )
    fields: Words = (coefficients >> shifts[:, np.newaxis]) & mask
    return fields.ravel()


def guards_are_zero(coefficients: Words) -> bool:
    """Whether the guard bit of every coefficient of a sum is zero, as it is in every term."""
    return not int(np.bitwise_or.reduce(coefficients)) & ((1 << GUARD_BITS) - 1)
