"""What a plan's turns send, as far as it is known before: HTTP bodies between the scientist and the owners of each turn.

Every turn is taken to come off at the first attempt, and owners to keep what they were brought. So a first turn brings the
vocabulary and the whole model to each owner, and a later one a step of the model (``compression.steps``) to who has the model
before it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from fl_privacy.compression.order_codec import sent_count
from fl_privacy.compression.steps import LARGEST_COMPOSED
from fl_privacy.encryption.evidence import OPENERS
from fl_privacy.encryption.packing import POLYNOMIAL_BYTES, SEED_BYTES, coordinates_per_block, plan_encoding
from fl_privacy.learning.adapters import A, B
from fl_privacy.learning.models import ModelBundle, outline
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.learning.trainable import trainable_specs
from fl_privacy.messages import (
    CloseRequest,
    Message,
    OpenRequest,
    Purpose,
    RevealRequest,
    SelfMaskReveal,
    Signed,
    SurvivorList,
    TensorSpec,
    UpdateReceipt,
)
from fl_privacy.parameters import count
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_order import CkksEncoding, Encoding, RoundOrder
from fl_privacy.round_plan import depths_of

CKKS_BYTES, CKKS_SLOTS = 235_000, 4088  # of one compressed vector, give or take some hundreds; coordinates in it
_ZERO, _OWNER, _FIGURE = "0" * 64, "an-owner", 12.345678901234567  # stand for any digest, name, figure
_RECEIPT = UpdateReceipt(
    order=_ZERO,
    owner=_OWNER,
    ciphertext=_ZERO,
    self_mask=_ZERO,
    ciphertext_bytes=POLYNOMIAL_BYTES,
    training_seconds=_FIGURE,
    encryption_seconds=_FIGURE,
    epsilon_spent=_FIGURE,
    epsilon_budget=_FIGURE,
    delta=1e-5,
    ledger_head=_ZERO,
    noise_multiplier=_FIGURE,
)


@dataclass(frozen=True)
class Turn:
    """The training of a round or the evaluation before it. Bytes are of all its owners together; up is from them."""

    purpose: Purpose
    round: int
    owners: int
    coordinates: int  # sent of each update
    bytes_up: int
    bytes_down: int


def turns_of(plan: TrainingPlan, bundle: ModelBundle, sizes: Mapping[str, int]) -> tuple[Turn, ...]:
    """All turns of a plan. Args: sizes are the declared sizes by owner. Raises: ModelError, EncodingOverflow."""
    owners = _Owners(plan, bundle)
    return tuple(_turn(plan, owners, purpose, index, sizes) for purpose, index in _order_of_turns(plan))


def _order_of_turns(plan: TrainingPlan) -> Iterator[tuple[Purpose, int]]:
    for index in range(plan.rounds + 1):
        if index in plan.evaluated_rounds:
            yield "evaluate", index
        if index < plan.rounds:
            yield "train", index


def _turn(plan: TrainingPlan, owners: _Owners, purpose: Purpose, index: int, sizes: Mapping[str, int]) -> Turn:
    cohort = plan.cohort(index) if purpose == "train" else tuple(sorted(plan.owners))
    weights = [sizes[owner] for owner in cohort]
    specs, encoding = order_specs(plan, purpose, index), plan_encoding(plan, weights, purpose)
    coordinates = sent_count(plan, count(specs)) if purpose == "train" else count(specs)
    update, total = _ciphertexts(encoding, coordinates, len(cohort))
    said_up, said_down = _words(specs, encoding, tuple(weights))
    brought = sum(owners.bring(owner, purpose, coordinates) for owner in cohort)
    if purpose == "train":
        owners.move(index, specs)
    return Turn(
        purpose=purpose,
        round=index,
        owners=len(cohort),
        coordinates=coordinates,
        bytes_up=len(cohort) * update + 4 * coordinates + said_up,
        bytes_down=brought + OPENERS * total + said_down,
    )


def _ciphertexts(encoding: Encoding | CkksEncoding, coordinates: int, owners: int) -> tuple[int, int]:
    """Bytes of one owner's update, and of the sum."""
    if isinstance(encoding, CkksEncoding):
        size = math.ceil(coordinates / CKKS_SLOTS) * CKKS_BYTES
        return size, size
    blocks = math.ceil(coordinates / coordinates_per_block(encoding))
    return blocks * (POLYNOMIAL_BYTES + SEED_BYTES), blocks * (POLYNOMIAL_BYTES + SEED_BYTES * owners)


@dataclass
class _Owners:
    """What the owners hold, turn by turn. Models are counted from the plan's own, 0; ``leads_from`` is the last step's base."""

    plan: TrainingPlan
    bundle: ModelBundle
    model: int = 0
    step_bytes: int = 0
    from_first_bytes: int = 0  # of a step from the plan's own model, where only adapters and a head move
    leads_from: int | None = None
    control: dict[str, TensorSpec] = field(default_factory=dict)  # SCAFFOLD's, by name; zero at first
    held: dict[str, int] = field(default_factory=dict)  # the latest model by owner

    def bring(self, owner: str, purpose: Purpose, coordinates: int) -> int:
        """Bytes to an owner before an order."""
        needed = 0 if owner in self.held else len(self.bundle.vocabulary)
        if purpose == "train":
            needed += _blob_bytes(self.control.values()) if self.control else 0
            needed += 4 * coordinates if self.plan.sent == "shared-top" else 0
        held, keeps_first = self.held.get(owner), self.plan.adapter is not None and self.plan.downlink_bits == 32
        if held is None and keeps_first:
            needed, held = needed + len(self.bundle.weights), 0
        if held != self.model:
            needed += self._step_or_whole(self.step_bytes if held == self.leads_from else self.from_first_bytes * keeps_first)
        self.held[owner] = self.model
        return needed

    def _step_or_whole(self, step: int) -> int:
        """Bytes of a step, or of the model where none (0) leads to it; of both where the guard cannot put them together."""
        return step + (self._whole if not step or self._whole + step > LARGEST_COMPOSED else 0)

    @property
    def _whole(self) -> int:
        """Bytes of the model; adapters come with the first step."""
        return len(self.bundle.weights) + (_blob_bytes(_adapters(self.plan)) if self.model else 0)

    def move(self, index: int, specs: Iterable[TensorSpec]) -> None:
        """After a round's training: a step leads to the next model, unless that has grown."""
        new = _adapters(self.plan) if index == 0 else ()
        names = {spec.name for spec in new}
        moved = [spec for spec in specs if spec.name not in names]
        self.step_bytes = _blob_bytes(moved, new, is_rounded=self.plan.downlink_bits == 8)
        others = {spec.name for spec in _adapters(self.plan)}
        self.from_first_bytes = _blob_bytes([spec for spec in specs if spec.name not in others], _adapters(self.plan))
        self.leads_from, self.model = self.model, self.model + 1
        if self.plan.strategy == "scaffold":
            self.control |= {spec.name: spec for spec in specs}
        if self._grows_before(index + 1):
            self.leads_from, self.control = None, {}

    def _grows_before(self, index: int) -> bool:
        if self.plan.layer_schedule != "progfed" or index >= self.plan.rounds:
            return False
        depths = depths_of(self.plan)
        return depths[index] > depths[index - 1]


def _adapters(plan: TrainingPlan) -> tuple[TensorSpec, ...]:
    if plan.adapter is None:
        return ()
    specs = trainable_specs(outline(plan.model, plan.adapter), "lora")
    return tuple(spec for spec in specs if spec.name.endswith((A, B)))


def _blob_bytes(specs: Iterable[TensorSpec], new: Iterable[TensorSpec] = (), is_rounded: bool = False) -> int:
    """Of a safetensors file of float32; ``is_rounded``: in one byte a coordinate, with a scale for each tensor, but for new."""
    header, end = dict[str, object](), 0

    def add(name: str, kind: str, shape: tuple[int, ...], width: int) -> None:
        nonlocal end
        start, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": (start, end)}

    for spec in new:
        add(spec.name, "F32", spec.shape, 4)
    for spec in specs:
        add(spec.name, *(("I8", spec.shape, 1) if is_rounded else ("F32", spec.shape, 4)))
        if is_rounded:
            add(f"scale:{spec.name}", "F32", (), 4)
    told = len(json.dumps(header, separators=(",", ":")))
    return 8 + math.ceil(told / 8) * 8 + end


@lru_cache(maxsize=64)
def _words(specs: tuple[TensorSpec, ...], encoding: Encoding | CkksEncoding, weights: tuple[int, ...]) -> tuple[int, int]:
    """Bytes up and down of what a cohort signs and is shown before a sum is opened: messages like the real ones, measured."""
    owners = len(weights)
    order = RoundOrder(
        plan=_ZERO,
        code=_ZERO,
        registry=_ZERO,
        key=_ZERO,
        round=0,
        attempt=0,
        model=_ZERO,
        tensors=specs,
        cohort=(_OWNER,) * owners,
        weights=weights,
        encoding=encoding,
    )
    receipts, every = (_signed(_RECEIPT),) * owners, (_ZERO,) * owners
    survivors = _signed(SurvivorList(order=_ZERO, owner=_OWNER, ciphertexts=every, heads=every, total=_ZERO))
    reveal = _signed(SelfMaskReveal(order=_ZERO, owner=_OWNER, seed=_ZERO))
    closing = CloseRequest(order=_signed(order), receipts=receipts, total=_ZERO)
    revealing = RevealRequest(**dict(closing), survivors=(survivors,) * owners)
    opening = OpenRequest(**dict(revealing), reveals=(reveal,) * owners)
    up, down = _size(survivors), _size(closing)
    if isinstance(encoding, Encoding):  # there are masks to reveal
        up, down = up + _size(reveal), down + _size(revealing)
    return owners * up, owners * down + OPENERS * _size(opening)


def _signed(message: Message) -> Signed:
    return Signed(kind=type(message).__name__, body=message.canonical().decode(), signer=_ZERO, signature=2 * _ZERO)


def _size(message: Message) -> int:
    return len(message.canonical())
