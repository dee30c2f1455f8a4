"""Lines of a history, as a run of three owners leaves them."""

from __future__ import annotations

from typing import Any

from fl_privacy.scientist.history import EvaluationRecord, OwnerSpend, RoundRecord

OWNERS = ("bank", "clinic", "school")


def spend(epsilon: float, **more: Any) -> OwnerSpend:
    return OwnerSpend(epsilon=epsilon, budget=8.5, delta=1e-5, ledger_head="ab" * 32, **more)


def trained(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        attempt=0,
        order="cd" * 32,
        cohort=OWNERS,
        openers=OWNERS[:2],
        failure_log2=-90.0,
        accuracy=0.4 + number / 100,
        perplexity=40.0 - number,
        update_norm=0.7,
        spends={owner: spend(number + 1.5) for owner in OWNERS},
        parameters=10,
        ciphertext_bytes=20,
        bytes_up=1000 + number,
        bytes_down=5000,
        seconds_training=12.0,
        seconds_crypto=0.25,
        seconds_transport=3.0,
        relative_update=0.01,
        noise_floor=0.1 if number else None,
    )


def evaluated(number: int) -> EvaluationRecord:
    return EvaluationRecord(
        round=number,
        attempt=0,
        order="ef" * 32,
        cohort=OWNERS,
        openers=OWNERS[:2],
        counts={"predictions": 100.0},
        deviations={"predictions": 3.0},
        metrics={"accuracy": 0.5, "perplexity": None},
        headline=0.5,
        headline_deviation=0.02,
        spends={owner: spend(9.0) for owner in OWNERS},
        bytes_up=10,
        bytes_down=20,
        seconds=4.0,
    )
