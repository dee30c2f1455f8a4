"""What a round of a plan computes: floating-point operations of one training example, in closed form, without a model.

Counted are the products of matrices, a multiplication and an addition being 2 operations: all dense layers, the adapters beside
them, attention's scores and contexts (T^2 terms, of the plain form; a fused kernel makes the scores once more on its way back),
and the head at the places that have something to predict. Not counted: look-ups and their gradients, norms, activations,
softmax, the optimizer, and what clipping each example's gradient takes, which together are small or alike for all plans.

Backward, a trained matrix takes one product for its own gradient; every matrix above something that is trained, frozen or not,
takes one more to hand the gradient down. What lies below the lowest trained tensor runs forward only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

from fl_privacy.errors import ModelError
from fl_privacy.model_spec import Adapter, ModelSpec
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_plan import lone_layer, round_plan

_SPECIAL_TOKENS = 2  # of an example, at both ends; nothing is predicted there


class Operations(NamedTuple):
    """Of one example: forward, and backward for the gradients of what is trained."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both."""
        return self.forward + self.backward


@dataclass(frozen=True)
class StepOperations:
    """One example's operations by part of the model; a layer is one application of it, from the bottom."""

    embeddings: Operations
    layers: tuple[Operations, ...]
    head: Operations

    @property
    def whole(self) -> Operations:
        """Of the whole model."""
        parts = (self.embeddings, *self.layers, self.head)
        return Operations(sum(part.forward for part in parts), sum(part.backward for part in parts))


def step_operations(plan: TrainingPlan, tokens: int, places: int) -> StepOperations:
    """What training takes for one example.

    Args: plan is that of a round (``round_plan``): its ``model``, ``trainable`` and adapter count. tokens are those of the
        example, T; places are how many of them the head scores, M.
    Raises: ModelError when the architecture does not tell a size.
    """
    sizes, step = _sizes(plan.model), _Step(plan.adapter)
    is_all, has_trained_head = plan.trainable == "all", bool(plan.model.labels) or plan.adapter is None
    step.follows = is_all
    if sizes.embedding != sizes.hidden:
        step.matrix(tokens, sizes.embedding, sizes.hidden, is_all)
    embeddings, layers = step.taken(), list[Operations]()
    first, last = plan.layers or ((0, sizes.layers) if is_all else (0, -1))
    for index in range(sizes.layers):
        step.layer(sizes, tokens, first <= index <= last)
        layers.append(step.taken())
    _head(step, plan.model, sizes, places, is_trained=has_trained_head, is_decoder_trained=is_all)
    return StepOperations(embeddings, tuple(layers), step.taken())


def expected_places(plan: TrainingPlan, tokens: int) -> int:
    """How many of an example's tokens are predicted; for a custom task, which tells nobody, all of them."""
    if plan.task == "mlm":
        return max(1, round(plan.mask_probability * (tokens - _SPECIAL_TOKENS)))
    return {"classification": 1, "clm": tokens - 1, "ner": tokens - _SPECIAL_TOKENS}.get(plan.task, tokens)


def round_operations(plan: TrainingPlan, round_index: int, tokens: int | None = None) -> float:
    """Of one example of a round, the mean over its owners, whose models may differ in depth.

    Args: tokens of the example, by default ``max_length``. Raises: ModelError.
    """
    owners, layers = plan.cohort(round_index), plan.model.num_layers
    depths = Counter([layers] * len(owners))
    if lone_layer(plan, round_index) is not None:
        depths = Counter(plan.depth_at(plan.owners.index(owner), layers) for owner in owners)
    tokens = tokens or plan.max_length
    each = {depth: _total(round_plan(plan, round_index, depth), tokens) for depth in depths}
    return sum(each[depth] * count for depth, count in depths.items()) / len(owners)


def everything_trained(plan: TrainingPlan, round_index: int) -> TrainingPlan:
    """The plan of a round that trains the same task with all layers, all tensors and no adapters: what others compare with."""
    stage, layers = round_plan(plan, round_index), plan.model.num_layers
    model = stage.model if stage.model.num_layers == layers else stage.model.with_layers(layers)
    return stage.model_copy(update={"model": model, "trainable": "all"})


def compute_share(plan: TrainingPlan, round_index: int) -> float:
    """A round's operations over those of ``everything_trained``, for examples of ``max_length`` tokens. Raises: ModelError."""
    return round_operations(plan, round_index) / _total(everything_trained(plan, round_index), plan.max_length)


def _total(plan: TrainingPlan, tokens: int) -> int:
    return step_operations(plan, tokens, expected_places(plan, tokens)).whole.total


class _Sizes(NamedTuple):
    """What an architecture multiplies: widths, applications of layers, and outputs of each projection of a layer's input."""

    layers: int
    hidden: int
    inner: int
    embedding: int
    vocabulary: int
    projections: tuple[int, ...]  # query, key, value, or one for all three
    norm_first: bool  # a norm, trained with its layer, stands before the projections


def _sizes(spec: ModelSpec) -> _Sizes:
    config = spec.config
    if config["model_type"] == "gpt2":
        hidden = _size(spec, config, "n_embd")
        inner = config.get("n_inner") or 4 * hidden
        return _Sizes(spec.num_layers, hidden, inner, hidden, _size(spec, config, "vocab_size"), (3 * hidden,), norm_first=True)
    hidden = _size(spec, config, "hidden_size")
    is_albert = config["model_type"] == "albert"
    return _Sizes(
        layers=spec.num_layers * (_size(spec, config, "inner_group_num") if is_albert else 1),
        hidden=hidden,
        inner=_size(spec, config, "intermediate_size"),
        embedding=_size(spec, config, "embedding_size") if is_albert else hidden,
        vocabulary=_size(spec, config, "vocab_size"),
        projections=(hidden, hidden, hidden),
        norm_first=False,
    )


def _size(spec: ModelSpec, config: dict[str, Any], field: str) -> int:
    size = config.get(field)
    if not isinstance(size, int):
        raise ModelError(f"model {spec.source!r}: the architecture does not tell its {field}")
    return size


class _Step:
    """One step, from the bottom up: counts products; ``follows`` is whether what comes next stands on something trained."""

    def __init__(self, adapter: Adapter | None) -> None:
        self.follows = False
        self._adapter, self._forward, self._backward = adapter, 0, 0

    def taken(self) -> Operations:
        """What was counted since the last call."""
        taken = Operations(self._forward, self._backward)
        self._forward = self._backward = 0
        return taken

    def matrix(self, rows: int, inputs: int, outputs: int, is_trained: bool) -> None:
        """The next matrix in a chain."""
        self._product(rows * inputs * outputs, is_trained, self.follows)
        self.follows |= is_trained

    def layer(self, sizes: _Sizes, tokens: int, is_trained: bool) -> None:
        """Attention and feed-forward, each with its way around it."""
        hidden = sizes.hidden
        self.follows |= is_trained and sizes.norm_first
        passed = [
            self._projection(tokens, hidden, outputs, is_trained, place) for place, outputs in enumerate(sizes.projections)
        ]
        query, key, value = passed if len(passed) == 3 else passed * 3
        self._product(tokens * tokens * hidden, query, key)
        self._product(tokens * tokens * hidden, query or key, value)
        self.follows = query or key or value
        for inputs, outputs in ((hidden, hidden), (hidden, sizes.inner), (sizes.inner, hidden)):
            self.matrix(tokens, inputs, outputs, is_trained)

    def _projection(self, tokens: int, inputs: int, outputs: int, is_trained: bool, place: int) -> bool:
        """One of what attention begins with, all of the same input; whether a gradient comes back to it."""
        self._product(tokens * inputs * outputs, is_trained, self.follows)
        if self._adapter is None or place == 1:  # keys have no adapter of their own
            return is_trained or self.follows
        trains_a = not self._adapter.frozen_a
        self._product(tokens * inputs * self._adapter.rank, trains_a, self.follows)
        self._product(tokens * self._adapter.rank * outputs, True, trains_a or self.follows)
        return True

    def _product(self, multiplications: int, *gradients: bool) -> None:
        """A product of two factors, and which of them get a gradient."""
        self._forward += 2 * multiplications
        self._backward += 2 * multiplications * sum(gradients)


def _head(step: _Step, spec: ModelSpec, sizes: _Sizes, places: int, *, is_trained: bool, is_decoder_trained: bool) -> None:
    """From hidden states to scores; a language model's last matrix is the word embedding."""
    is_gpt2 = spec.config["model_type"] == "gpt2"
    if spec.outputs is None:
        if not is_gpt2:
            step.matrix(places, sizes.hidden, sizes.embedding, is_trained)
        step.matrix(places, sizes.embedding, sizes.vocabulary, is_decoder_trained)
        return
    if spec.head == "classification" and not is_gpt2:
        step.matrix(places, sizes.hidden, sizes.hidden, is_trained)
    step.matrix(places, sizes.hidden, spec.outputs, is_trained)
