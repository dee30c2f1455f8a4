"""One round as it should go, with everything that owners sign and the files that a scientist keeps of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.evidence import Evidence
from fl_privacy.messages import CloseRequest, OpenedSum, OpenRequest, Signed, UpdateReceipt, sign
from fl_privacy.parameters import Vector
from tests.secure_cohort import SecureCohort


@dataclass(frozen=True)
class SignedRound:
    """A cohort, the request that opens its sum, the opened values, and the words of two openers."""

    cohort: SecureCohort
    request: OpenRequest
    opened: tuple[Signed, ...]
    evidence: Evidence
    values: Vector

    @property
    def receipts(self) -> list[UpdateReceipt]:
        """What the owners signed for their updates, in the order of the cohort."""
        return [UpdateReceipt.parse(signed.body) for signed in self.request.receipts]

    def key(self, owner: str) -> Ed25519PrivateKey:
        """An owner's signing key."""
        return self.cohort.identities[owner].signing_key


def make_signed_round(cohort: SecureCohort, folder: Path, updates: Sequence[Vector] | None = None) -> SignedRound:
    """Carry a round through, without guards, and keep its evidence in ``folder``."""
    order, evidence, blobs = cohort.order, Evidence(folder), cohort.protect_all(updates or cohort.updates())
    paths = [evidence.update_path(owner) for owner in order.cohort]
    paths[0].parent.mkdir(parents=True)
    for path, blob in zip(paths, blobs, strict=True):
        path.write_bytes(blob)
    add_updates(paths, order, evidence.total_path)
    request = cohort.agreed(blobs, evidence.total_path.read_bytes())
    values = cohort.open(evidence.total_path.read_bytes())
    evidence.values_path.write_bytes(values.astype("<f4").tobytes())
    openers = [(owner, cohort.identities[owner].signing_key) for owner in order.cohort[:2]]
    opened = tuple(sign(opened_sum(request, order.digest(), owner, values), key) for owner, key in openers)
    evidence.write(request, opened)
    return SignedRound(cohort, request, opened, evidence, values)


def opened_sum(request: CloseRequest, order: str, owner: str, values: Vector) -> OpenedSum:
    """What an opener signs."""
    return OpenedSum(
        order=order,
        owner=owner,
        total=request.total,
        values=sha256(np.asarray(values, "<f4").tobytes()),
        decryption_seconds=0.1,
    )


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()
