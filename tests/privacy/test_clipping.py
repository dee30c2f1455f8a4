"""Clipping on small nets: against autograd, against hostile weights, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.clipping import Tape
from fl_privacy.privacy.per_example import Product, Products, Whole, total_of
from tests.privacy.oracle import difference, one_at_a_time, ours, require_equal, size, trained_of

ROWS = 30  # of every embedding, more than tokens, so that its gradient is not made


class Stack(nn.Module):
    """Tokens through an embedding, layers that may be one and the same, and an output that may be the embedding again."""

    def __init__(self, kinds: list[str], width: int, bias: bool, tied: bool, padding: int | None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ROWS, width, padding_idx=padding)
        made = {
            "linear": nn.Linear(width, width, bias=bias),
            "conv1d": Conv1D(width, width),
            "norm": nn.LayerNorm(width),
            "narrow": nn.Sequential(nn.Linear(width, 1, bias=bias), nn.Linear(1, width)),
        }
        self.layers = nn.ModuleList(made[kind] for kind in kinds)
        self.out = nn.Linear(width, ROWS, bias=bias)
        if tied:
            self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) to (B, T, ROWS)."""
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden)) + 0.5 * hidden
        scores: Tensor = self.out(hidden)
        return scores


@hypothesis_settings(deadline=None, max_examples=100)
@given(
    kinds=st.lists(st.sampled_from(["linear", "conv1d", "norm", "narrow"]), max_size=5),
    width=st.sampled_from([1, 2, 6, 20]),
    flags=st.tuples(st.booleans(), st.booleans()),
    padding=st.sampled_from([None, 0, 3]),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    frozen=st.integers(0, 2**16),
    bound=st.sampled_from([1e-3, 0.5, 1e6]),
    seed=st.integers(0, 2**16),
)
def test_any_stack_of_layers_equals_one_example_at_a_time(
    kinds: list[str],
    width: int,
    flags: tuple[bool, bool],
    padding: int | None,
    shape: tuple[int, int],
    frozen: int,
    bound: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = Stack(kinds, width, *flags, padding).double()
    for place, tensor in enumerate(model.parameters()):
        nn.init.normal_(tensor)
        tensor.requires_grad_(not frozen >> place & 1)
    ids, weights = torch.randint(ROWS, shape), torch.randn(*shape, ROWS, dtype=torch.float64)
    if not any(any(tensor.requires_grad for tensor in layer.parameters()) for layer in model.modules()):
        return

    def losses(some: slice = slice(None)) -> Tensor:
        return (weights[some] * model(ids[some]) ** 2).sum(dim=(1, 2))

    alone = [losses(slice(place, place + 1))[0] for place in range(len(ids))]
    require_equal(ours(model, losses, bound), one_at_a_time(model, alone, bound))


@pytest.mark.parametrize("ids", [(), (0, 1, 2), (1,), (0, 2)], ids=["dense", "row numbers", "dense first", "row numbers first"])
def test_both_forms_of_a_gradient_have_the_same_norms_and_sums(ids: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    shape = torch.Size((7, 6))
    uses = [
        Product(torch.randint(7, (4, tokens)) if place in ids else torch.randn(4, tokens, 7), torch.randn(4, tokens, 6))
        for place, tokens in enumerate((3, 1, 5))
    ]
    products, factors = Products(tuple(uses), shape), torch.rand(4)
    whole = products.whole()
    expected = torch.einsum("b,b...->...", factors, whole.gradients)
    for one in (products, whole):
        total = torch.zeros(shape)
        one.add_to(total, factors)
        torch.testing.assert_close(total, expected)
        squares = whole.gradients.double().flatten(1).norm(dim=1).square()
        torch.testing.assert_close(one.squared_norms()[0], squares, rtol=1e-5, atol=0.0)
    assert (products.squared_norms()[1] >= products.squared_norms()[0]).all(), "what nothing cancels in is the largest"


def test_a_gradient_is_made_only_where_it_is_no_larger_than_its_factors() -> None:
    def form(tokens: int, rows: int, columns: int) -> type:
        use = Product(torch.zeros(2, tokens, rows), torch.zeros(2, tokens, columns))
        return type(total_of([use], torch.Size((rows, columns))))

    assert form(128, 768, 768) is Products
    assert form(128, 8, 768) is Whole  # an adapter
    assert form(512, 768, 768) is Whole


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(3, 4, 2), nn.GroupNorm(1, 3), nn.RMSNorm(5)], ids=lambda layer: type(layer).__name__
)
def test_layers_of_opacus_are_used_where_there_is_no_rule_of_ours(layer: nn.Module) -> None:
    torch.manual_seed(3)
    model = layer.double()
    examples = torch.randn(4, 3, 5, dtype=torch.float64)
    require_equal(
        ours(model, lambda: (model(examples) ** 2).flatten(1).sum(dim=1), 0.5),
        one_at_a_time(model, [(model(one[None]) ** 2).sum() for one in examples], 0.5),
    )


class Pull(nn.Module):
    """x -> sum over tokens of s_t v . (W x_t): the gradient is v times the sum of s_t x_t, which may cancel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False)

    def losses(self, examples: Tensor, signs: Tensor) -> Tensor:
        """(B,)"""
        return (self.layer(examples) * signs[:, :, None]).sum(dim=(1, 2))


@pytest.mark.parametrize("strength", [1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("likeness", [0.0, 1e-6, 1e-4, 1e-2, 0.1, 0.3])
def test_weights_that_make_an_example_cancel_do_not_get_more_of_it_through(strength: float, likeness: float) -> None:
    # Two tokens that nearly cancel: a norm from inner products alone would be rounding error, often zero, and an example of
    # any size would pass unclipped. Measured by what is really added, in float64.
    for seed in range(20):
        torch.manual_seed(seed)
        one = torch.randn(1, 1, 64)
        examples = torch.cat([one, one + likeness * torch.randn(1, 1, 64)], dim=1)
        model = Pull(64)
        found = ours(model, partial(model.losses, examples, strength * torch.tensor([[1.0, -1.0]])), 1.0)
        assert size(found.totals) <= 1 + 2e-5


def test_without_making_cancelled_gradients_the_bound_would_be_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_privacy.privacy.clipping._CANCELLED", 0.0)
    with pytest.raises(AssertionError):
        test_weights_that_make_an_example_cancel_do_not_get_more_of_it_through(1e6, 1e-6)


@hypothesis_settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-3, 1.0, 30.0, 1e12]), bound=st.sampled_from([0.01, 1.0, 50.0]))
def test_one_example_more_moves_the_sum_by_at_most_the_bound(seed: int, scale: float, bound: float) -> None:
    # whatever the weights: 1e12 overflows float32 for some examples and not for others
    torch.manual_seed(seed)
    model = Stack(["linear", "norm", "linear", "conv1d"], 6, True, True, None)
    for tensor in model.parameters():
        nn.init.normal_(tensor, std=scale)
    ids = torch.randint(ROWS, (5, 4))

    def losses(count: int) -> Callable[[], Tensor]:
        return lambda: (model(ids[:count]) ** 4).sum(dim=(1, 2))

    everyone, others = ours(model, losses(5), bound).totals, ours(model, losses(4), bound).totals
    assert all(total.isfinite().all() for total in everyone.values())
    assert size(difference(everyone, others)) <= bound * (1 + 5 * 2e-5)


@pytest.mark.parametrize("poison", [float("inf"), float("nan"), 3e38])
@pytest.mark.parametrize("layer", ["linear", "narrow", "norm"])
def test_an_example_that_is_not_finite_leaves_the_others_as_they_are(poison: float, layer: str) -> None:
    torch.manual_seed(4)
    made = {"linear": nn.Linear(6, 6), "narrow": nn.Linear(6, 1), "norm": nn.LayerNorm(6)}[layer]
    examples = torch.randn(4, 2, 6)
    examples[1, 0, 3] = poison

    def losses(some: Tensor) -> Tensor:
        return (made(some) ** 2).sum(dim=(1, 2))

    found, expected = ours(made, lambda: losses(examples), 0.5), ours(made, lambda: losses(examples[[0, 2, 3]]), 0.5)
    assert size(difference(found.totals, expected.totals)) <= 1e-5


def _refused(model: nn.Module, losses: Callable[[], Tensor], match: str) -> None:
    tape = Tape(model)
    with tape.recording(), pytest.raises(PrivacyError, match=match):
        tape.backward(losses())
    assert not any(layer._forward_hooks for layer in model.modules())


def test_a_layer_without_a_rule_is_refused_by_name() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

    for layer in (Scale(), nn.MultiheadAttention(4, 2), nn.Bilinear(2, 2, 2)):
        with pytest.raises(PrivacyError, match=f"layer '1' is a {type(layer).__name__}: no rule"):
            Tape(nn.Sequential(nn.Linear(3, 3), layer))
        Tape(nn.Sequential(nn.Linear(3, 3), layer.requires_grad_(False)))


def test_a_second_name_of_a_layers_tensor_needs_no_rule() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Linear(3, 3)
            self.bias = self.decoder.bias

    examples, head = torch.randn(4, 3), Head()
    require_equal(
        ours(head, lambda: head.decoder(examples).sum(dim=1), 0.1),
        one_at_a_time(head, [head.decoder(one).sum() for one in examples], 0.1),
    )


def test_layers_that_mix_examples_are_refused() -> None:
    for changes in ({"scale_grad_by_freq": True}, {"max_norm": 1.0}, {"sparse": True}):
        with pytest.raises(PrivacyError, match="Embedding"):
            Tape(nn.Sequential(nn.Embedding(3, 2, **changes)))
    for frozen in (False, True):
        with pytest.raises(PrivacyError, match="BatchNorm1d: it mixes examples"):
            Tape(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).requires_grad_(not frozen)))


NOT_FOR_EACH = "no gradient for each example"


def test_a_tensor_that_is_used_outside_of_its_layer_is_refused() -> None:
    layer, examples = nn.Linear(2, 2), torch.ones(3, 2)
    _refused(layer, lambda: functional.linear(layer(examples), layer.weight).sum(dim=1), NOT_FOR_EACH)
    _refused(layer, lambda: functional.linear(examples, layer.weight).sum(dim=1), NOT_FOR_EACH)
    _refused(layer, lambda: (layer(examples) + layer.bias).sum(dim=1), NOT_FOR_EACH)


def test_a_layer_whose_rows_are_not_the_examples_is_refused() -> None:
    layer, examples = nn.Linear(2, 2), torch.ones(3, 4, 2)
    _refused(layer, lambda: layer(examples.flatten(0, 1)).view(3, -1).sum(dim=1), NOT_FOR_EACH)
    _refused(layer, lambda: layer(examples.mean(dim=0)).sum().expand(3), NOT_FOR_EACH)


def test_losses_without_a_trained_tensor_are_refused() -> None:
    layer = nn.Linear(2, 2)
    _refused(layer, lambda: torch.ones(3), NOT_FOR_EACH)
    _refused(layer, lambda: layer(torch.ones(3, 2)).detach().sum(dim=1), NOT_FOR_EACH)


def test_recomputed_layers_are_refused() -> None:
    layer, examples = nn.Linear(2, 2), torch.ones(3, 2, requires_grad=True)
    _refused(layer, lambda: checkpoint(layer, examples, use_reentrant=True).sum(dim=1), NOT_FOR_EACH)


def test_changes_in_place_are_refused() -> None:
    layer, examples = nn.Linear(2, 2), torch.ones(3, 2)
    _refused(layer, lambda: layer(examples).relu_().sum(dim=1), "changed in place")
    changed: list[Any] = []

    def losses() -> Tensor:
        changed.append(layer(examples))
        examples.add_(1)
        found: Tensor = changed[0].sum(dim=1)
        return found

    _refused(layer, losses, "changed in place")


def test_uses_that_do_not_reach_the_losses_do_not_count() -> None:
    layer, examples = nn.Linear(2, 2).double(), torch.randn(3, 2, dtype=torch.float64)

    def losses() -> Tensor:
        layer(examples)
        with torch.no_grad():
            layer(examples)
        found: Tensor = layer(examples).sum(dim=1)
        return found

    require_equal(ours(layer, losses, 0.1), one_at_a_time(layer, [layer(one).sum() for one in examples], 0.1))
    assert len(trained_of(layer)) == 2
