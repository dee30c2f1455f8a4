"""The scientist's half: add the owners' ciphertexts without being able to read them. No key is used or accepted here."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import tenseal.sealapi as seal

from fl_privacy.encryption import cipher
from fl_privacy.encryption.packing import check_encoding
from fl_privacy.encryption.registry import check_cohort
from fl_privacy.errors import CohortMismatch
from fl_privacy.messages import RoundOrder


def add_updates(blobs: Iterable[bytes], order: RoundOrder) -> bytes:
    """Add one encrypted update of each owner of the cohort; blobs are read one at a time, in any order.

    Check each blob against its owner's signed receipt first: the position in a blob is not authenticated by itself.

    Returns: the container of the encrypted sum.
    Raises: CiphertextInvalid, CohortMismatch (an owner missing or twice), CohortTooSmall, EncodingOverflow.
    Privacy: reads nothing; without a secret key a ciphertext is pseudo-random, and a sum adds no noise of its own.
    """
    check_cohort(order)
    check_encoding(order)
    modulus_bits, cohort = order.encoding.modulus_bits, sorted(order.cohort)
    sums: list[Any] = []
    added: set[str] = set()
    for blob in blobs:
        position, blocks = cipher.read_container(blob, cipher.UPDATE, order)
        if position >= len(cohort) or cohort[position] in added:
            raise CohortMismatch(f"an update at position {position} of the cohort is superfluous")
        added.add(cohort[position])
        updates = (cipher.load_block(block, cipher.UPDATE, modulus_bits) for block in blocks)
        if sums:
            _add(sums, updates, modulus_bits)
        else:
            sums = list(updates)
    if len(added) < len(cohort):
        raise CohortMismatch(f"no update of {', '.join(sorted(set(cohort) - added))}")
    return cipher.write_container(cipher.TOTAL, order, 0, map(partial(cipher.save_total, modulus_bits=modulus_bits), sums))


def _add(sums: list[Any], updates: Iterable[Any], modulus_bits: int) -> None:
    evaluator = seal.Evaluator(cipher.context(modulus_bits))
    for total, update in zip(sums, updates, strict=True):
        evaluator.add_inplace(total, update)
