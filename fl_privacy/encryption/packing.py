"""Choosing the encoding of a cohort, and packing several fields into one slot modulo t.

An encoding is a function of cohort size, precision and range alone, so every party recomputes it and accepts no other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fl_privacy.errors import CohortTooSmall, EncodingOverflow
from fl_privacy.messages import Encoding, RoundOrder, first_problem
from fl_privacy.parameters import count
from fl_privacy.plan import MINIMAL_COHORT, TrainingPlan

Slots = NDArray[np.uint64]  # values modulo t, or fields below 2**field_bits

DEGREE = 4096  # ring degree N: slots in one ciphertext
COEFF_BITS = 60  # one ciphertext prime q just below 2**60; with N = 4096 above 192-bit security (HE standard, 2018)
CHECK_SLOTS = 2  # slots per ciphertext that carry a known value
DATA_SLOTS = DEGREE - CHECK_SLOTS
NOISE_DEVIATION = math.sqrt(21 / 2 + 1 / 12)  # per owner: SEAL's centred binomial error, and the rounding of q/t * m
NOISE_TAIL = 8.5  # standard deviations of the summed noise below q / 2t; beyond them (p < 2**-55) a sum decrypts wrongly


def choose_encoding(cohort_size: int, value_bits: int, value_range: float) -> Encoding:
    """The one encoding for this many owners: as many fields per slot as the noise of their sum leaves room for.

    A field needs value_bits + ceil(log2 K) bits for the sum of K values; t is a batching prime just large enough
    for the fields, which leaves the most room for noise.

    Args: cohort_size K; value_bits per coordinate; value_range the bound on each coordinate after weighting.
    Raises: CohortTooSmall below three owners, EncodingOverflow when not one field fits.
    Source: Fan and Vercauteren 2012, section 4 (noise of addition).
    """
    if cohort_size < MINIMAL_COHORT:
        raise CohortTooSmall(f"a sum over {cohort_size} owners does not hide one of them; {MINIMAL_COHORT} are needed")
    room = COEFF_BITS - 1 - math.log2(NOISE_TAIL * NOISE_DEVIATION * math.sqrt(cohort_size))
    field_bits = value_bits + (cohort_size - 1).bit_length()
    fields = min((math.floor(room) - 1) // field_bits, 16)  # t > 2**(modulus_bits - 1), so fields take modulus_bits - 1
    if fields < 1:
        raise EncodingOverflow(f"{value_bits} bits for each of {cohort_size} owners do not fit a slot; use fewer update_bits")
    try:
        return Encoding(
            value_range=value_range,
            value_bits=value_bits,
            field_bits=field_bits,
            fields_per_slot=fields,
            modulus_bits=max(fields * field_bits + 1, 20),
        )
    except ValidationError as problem:
        raise EncodingOverflow(f"no encoding: {first_problem(problem)}") from None


def plan_encoding(plan: TrainingPlan, weights: Sequence[int]) -> Encoding:
    """The encoding that a plan implies for a cohort: updates of at most ``update_range``, weighted by at most the largest p_k.

    Args: weights are the cohort's declared sizes. Raises: CohortTooSmall, EncodingOverflow.
    """
    return choose_encoding(len(weights), plan.update_bits, plan.update_range * max(weights) / sum(weights))


def check_encoding(order: RoundOrder) -> None:
    """Refuse an order whose encoding is not the one for its cohort; sums in it could wrap silently.

    Raises: CohortTooSmall, EncodingOverflow.
    """
    right = choose_encoding(len(order.cohort), order.encoding.value_bits, order.encoding.value_range)
    if order.encoding != right:
        raise EncodingOverflow(f"the order's encoding is not the one for {len(order.cohort)} owners: use choose_encoding")


def coordinates_per_block(encoding: Encoding) -> int:
    """Coordinates that one ciphertext carries."""
    return DATA_SLOTS * encoding.fields_per_slot


def block_count(order: RoundOrder) -> int:
    """Ciphertexts that one update of this order fills."""
    return math.ceil(count(order.tensors) / coordinates_per_block(order.encoding))


def pack(fields: Slots, encoding: Encoding) -> Slots:
    """Put ``fields_per_slot`` consecutive fields into each slot, the first in the lowest bits.

    Args: fields (n,). Returns: slots (ceil(n / fields_per_slot),), each below 2**(modulus_bits - 1), hence below t.
    Raises: EncodingOverflow when a field does not fit its bits.
    """
    if fields.size and int(fields.max()) >> encoding.field_bits:
        raise EncodingOverflow(f"a field does not fit {encoding.field_bits} bits")
    padded = np.zeros(math.ceil(fields.size / encoding.fields_per_slot) * encoding.fields_per_slot, np.uint64)
    padded[: fields.size] = fields
    shifted: Slots = padded.reshape(-1, encoding.fields_per_slot) << _shifts(encoding)
    slots: Slots = np.bitwise_or.reduce(shifted, axis=1)
    return slots


def unpack(slots: Slots, encoding: Encoding) -> Slots:
    """The inverse of ``pack``, also for sums of packed slots. Returns: fields (slots.size * fields_per_slot,)."""
    mask = np.uint64((1 << encoding.field_bits) - 1)
    fields: Slots = (slots[:, np.newaxis] >> _shifts(encoding)) & mask
    return fields.ravel()


def _shifts(encoding: Encoding) -> Slots:
    return np.arange(encoding.fields_per_slot, dtype=np.uint64) * np.uint64(encoding.field_bits)
