"""Which layers a round trains, or has: FedBT's two stages and progressive growth; and of which layers a small model is made.

Pure functions of what a plan and an order say, so that every owner's guard finds the same layers as the scientist. Layers are
counted from 0, the one next to the embeddings. No function sees data, so none costs any privacy.
Source: FedBT (Wang 2025, Journal of Software 36(9)); FedBFPT (Wang et al. 2023, IJCAI); ProgFed (Wang et al. 2022, arXiv
2110.05323).
"""

from __future__ import annotations

import hashlib

from fl_privacy.errors import PlanError

_DRAW_BYTES = 8  # for each draw: among at most 128 layers, no layer is favoured by more than 2^-57


def further_pretraining_layers(rounds: int) -> tuple[int, ...]:
    """FedBT's stage 1: the one layer that each round trains.

    Layer 0 has the first half of the rounds (rounded up), layer 1 half of those left, and so on: layer j begins when
    floor(rounds / 2^j) rounds are left. The deepest is floor(log2 rounds).
    Raises: PlanError.
    """
    _require("rounds", rounds, 0)
    return tuple((rounds // left).bit_length() - 1 for left in range(rounds, 0, -1))


def fine_tuning_layers(rounds: int, layers: int, cycle: int) -> tuple[int, ...]:
    """FedBT's stage 2: the lowest layer that each round trains, with all above it.

    One layer deeper each round, from the top one down to ``layers - cycle``, and from the top again.
    Raises: PlanError.
    """
    _require("rounds", rounds, 0)
    _require("cycle", cycle, 1, layers)
    return tuple(layers - 1 - index % cycle for index in range(rounds))


def growing_depths(rounds: int, layers: int, stages: int) -> tuple[int, ...]:
    """ProgFed: how many layers the model has in each round; it never shrinks, and is whole in the last stage.

    Each stage before the last has floor(rounds / (2 stages)) rounds, the last has the others; stage s of S has
    ceil(s layers / S) layers.
    Raises: PlanError, also where a stage would have no round.
    """
    _require("stages", stages, 1, layers)
    _require("rounds", rounds, 0 if stages == 1 else 2 * stages)
    depths = (-(-stage * layers // stages) for stage in range(1, stages))
    growing = tuple(depth for depth in depths for _ in range(rounds // (2 * stages)))
    return growing + (layers,) * (rounds - len(growing))


def drawn_layers(seed: bytes, slot: int, depth: int, layers: int) -> tuple[int, ...]:
    """Of which of the global ``layers`` each of an owner's ``depth`` local layers is a copy in FedBT's stage 1.

    Up to ``slot``, the trained one, each is its own; behind it come draws, uniform and with replacement, from the layers above
    ``slot``, in ascending order.
    Args: seed, which alone decides the draw: the digest of a signed order and an owner's name, so that owners and rounds differ
        and anyone can repeat it.
    Raises: PlanError.
    """
    _require("depth", depth, 1, layers)
    _require("slot", slot, 0, depth - 1)
    above = range(slot + 1, layers)
    stream = hashlib.shake_256(b"fl_privacy/v1/drawn-layers\0" + seed).digest(_DRAW_BYTES * (depth - slot - 1))
    numbers = (int.from_bytes(stream[start : start + _DRAW_BYTES]) for start in range(0, len(stream), _DRAW_BYTES))
    return (*range(slot + 1), *sorted(above[number % len(above)] for number in numbers))


def _require(name: str, value: int, least: int, most: int | None = None) -> None:
    if value < least:
        raise PlanError(f"{name}: {value} is less than {least}")
    if most is not None and value > most:
        raise PlanError(f"{name}: {value} is more than {most}")
