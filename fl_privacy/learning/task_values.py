"""What custom tasks may handle: kinds of values, names with a meaning, and how much of it all.

Everything listed here is a pure function of its arguments: no random numbers, no memory that was not written by the same call
(``torch.empty`` would show old memory), no order or address that depends on earlier calls (as in sets), no settings.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, NoneType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from fl_privacy.learning.text_encoder import TextEncoder

LONGEST = 10_000  # characters of a string, entries of a list; one step over two of them stays below a second
LARGEST = 1 << 24  # elements of a tensor: the scores of 512 tokens over 32,000 words
WORK = 50_000  # units for one call: bounds its time, and the memory of what a loss keeps for its gradient to 400 MB
ELEMENTS = 2_000  # tensor elements that cost one unit; an evaluated form costs one as well
BITS = 128  # of an integer


class Refused(ValueError):
    """A value, name or amount of work that custom tasks may not use, found while one runs."""


class TaskTokenizer:
    """What a custom task sees of the tokenizer: ids of special tokens, and ``encode``."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
        self._encoder = TextEncoder(tokenizer, max_length)
        self.max_length = max_length
        self.vocab_size = len(tokenizer)
        self.all_special_ids = tuple(tokenizer.all_special_ids)
        for name in ("cls_token_id", "sep_token_id", "mask_token_id", "pad_token_id", "unk_token_id"):
            setattr(self, name, getattr(tokenizer, name))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, at most ``max_length`` with the special tokens around it; see ``TextEncoder``."""
        if type(text) is not str:
            raise Refused("encode takes one text")
        ids: list[int] = self._encoder.encode(text).tolist()
        return ids

    def __repr__(self) -> str:
        return "tokenizer"  # no address: it would differ from one process to the next


class Meter:
    """The work that one call has left, and the size of every value that it makes."""

    def __init__(self, work: int = WORK) -> None:
        self._left = work

    def spend(self, units: int) -> None:
        """Raise Refused when the call has used up its work."""
        self._left -= units
        if self._left < 0:
            raise Refused("too much work for one record")

    def keep(self, value: Any) -> Any:
        """A result as a plain value of a known kind. Raises: Refused when it is of another kind, or too large."""
        if isinstance(value, tuple) and type(value) is not tuple:  # torch.Size, and the pairs that torch.max gives
            value = tuple(value)
        elif isinstance(value, (type({}.keys()), type({}.values()), type({}.items()))):
            value = list(value)
        kind = type(value)
        if kind is Tensor:
            self.spend(1 + value.numel() // ELEMENTS)
            fits = value.numel() <= LARGEST
        elif kind is int:
            self.spend(1)
            fits = value.bit_length() <= BITS
        elif kind in (str, list, tuple, dict, range):
            self.spend(1 + len(value) // 100)
            fits = len(value) <= LONGEST
        else:
            self.spend(1)
            fits = kind in (NoneType, bool, float, torch.dtype, TaskTokenizer)
        if not fits:
            raise Refused(f"a value of kind {kind.__name__} that is too large or not known here")
        return value

    def admit(self, arguments: Sequence[Any]) -> None:
        """Pay for what an operation will read, and refuse it when its result could be too large.

        Entries of lists count as often as they are reached: a list that holds another one twice, and so on, is small in
        memory and endless to compare or print.
        """
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        for value in arguments:
            if isinstance(value, (list, tuple, dict)):
                self.spend(self._entries(value, tensors) // 100)
        total = sum(tensor.numel() for tensor in tensors)
        self.spend(total // ELEMENTS)
        if max(total, _broadcast(tensors)) > LARGEST:
            raise Refused("an operation on tensors that are too large")

    def iterate(self, value: Any) -> Sequence[Any]:
        """The items of a value as they are now; each is paid for by whoever takes it."""
        if type(value) not in (str, list, tuple, dict, range, Tensor) or len(value) > LONGEST:
            raise Refused("a loop over a value that is too long or has no items")
        return list(value)

    def _entries(self, value: Any, tensors: list[Tensor]) -> int:
        count, open_values = 0, [value]
        while open_values:
            current = open_values.pop()
            inner = [*current.keys(), *current.values()] if isinstance(current, dict) else current
            count += len(inner)
            if count > LONGEST:
                raise Refused("a value with too many entries")
            open_values.extend(item for item in inner if isinstance(item, (list, tuple, dict)))
            tensors.extend(item for item in inner if isinstance(item, Tensor))
        return count


def binary(kind: type[ast.AST], left: Any, right: Any, meter: Meter) -> Any:
    """``left`` and ``right`` under an arithmetic operator or a comparison. Raises: Refused."""
    meter.admit((left, right))
    sequences = [value for value in (left, right) if isinstance(value, (str, list, tuple))]
    if kind is ast.Mod and isinstance(left, str):
        raise Refused("% on a text")
    if kind is ast.Mult and sequences and any(isinstance(n, int) and n * len(sequences[0]) > LONGEST for n in (left, right)):
        raise Refused("a repetition that is too long")
    if kind is ast.Pow and isinstance(left, int) and isinstance(right, int) and abs(right) > BITS:
        raise Refused("a power that is too large")
    return meter.keep(OPERATORS[kind](left, right))


def call_method(target: Any, name: str, arguments: Sequence[Any], named: Mapping[str, Any], meter: Meter) -> Any:
    """``target.name(...)``, if objects of exactly this type have that method here. Raises: Refused."""
    if name not in METHODS.get(type(target), ()):
        raise Refused(f"{type(target).__name__}.{name}")
    meter.admit((target, *arguments, *named.values()) if isinstance(target, Tensor) else (*arguments, *named.values()))
    if name == "tolist" and target.numel() > LONGEST:
        raise Refused("a tensor that is too large for a list")
    result = meter.keep(getattr(target, name)(*arguments, **named))
    meter.keep(target)  # a list may have grown
    return result


def field(target: Any, name: str, meter: Meter) -> Any:
    """``target.name``, if objects of exactly this type have that field here. Raises: Refused."""
    if name not in FIELDS.get(type(target), ()):
        raise Refused(f"{type(target).__name__}.{name}")
    return meter.keep(getattr(target, name))


def item(target: Any, index: Any, meter: Meter) -> Any:
    """``target[index]``. Raises: Refused."""
    meter.admit((index, target) if isinstance(target, Tensor) else (index,))
    return meter.keep(target[index])


def set_item(target: Any, index: Any, value: Any, meter: Meter) -> None:
    """``target[index] = value``, on what the same call has made or was given alone. Raises: Refused."""
    if type(target) not in (list, dict, Tensor):
        raise Refused("an assignment into a value that is no list, dict or tensor")
    meter.admit((index, value, target) if isinstance(target, Tensor) else (index,))
    target[index] = value
    meter.keep(target)


def _broadcast(tensors: Sequence[Tensor]) -> int:
    try:
        return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return 0  # shapes that do not fit each other: the result is no larger than what goes in


def _filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def sized(*size: Any, dtype: torch.dtype | None = None) -> Tensor:
        shape = size[0] if len(size) == 1 and isinstance(size[0], (list, tuple)) else size
        if not all(type(length) is int and length >= 0 for length in shape) or math.prod(shape) > LARGEST:
            raise Refused("a tensor that is too large")
        return make(shape, dtype=dtype)

    return sized


def _counted(count: int) -> Tensor:
    if type(count) is not int or not 0 <= count <= LARGEST:
        raise Refused("torch.arange takes one count")
    return torch.arange(count)


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


def _picked(module: Any, names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names.split()}


OPERATORS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: operator.pow,
        ast.BitAnd: operator.and_,
        ast.BitOr: operator.or_,
        ast.Eq: operator.eq,
        ast.NotEq: operator.ne,
        ast.Lt: operator.lt,
        ast.LtE: operator.le,
        ast.Gt: operator.gt,
        ast.GtE: operator.ge,
        ast.In: lambda left, right: left in right,
        ast.NotIn: lambda left, right: left not in right,
    }
)
BUILTINS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        **{function.__name__: function for function in (abs, all, any, bool, float, int, len, list, max, min, range, round)},
        **{function.__name__: function for function in (sorted, str, tuple)},
        "enumerate": lambda items: list(enumerate(items)),
        "reversed": lambda items: list(reversed(items)),
        "sum": lambda items: sum(items),  # a start value would let lists be summed, which takes quadratic time
        "zip": lambda *items: list(zip(*items, strict=False)),
    }
)
MODULES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "math": _picked(math, "ceil cos exp fabs floor inf isfinite isnan log log2 pi sin sqrt tanh"),
        "torch": _picked(
            torch,
            "abs argmax argmin cat clamp cumsum exp float32 float64 gather int64 isfinite isnan log log1p log_softmax logsumexp"
            " max maximum mean min minimum ones_like relu sigmoid softmax sqrt square stack sum tanh tensor where zeros_like",
        )
        | {"arange": _counted, "bool": torch.bool, "ones": _filled(torch.ones), "zeros": _filled(torch.zeros)},
        "torch.nn.functional": _picked(
            functional,
            "binary_cross_entropy_with_logits cosine_similarity cross_entropy gelu huber_loss kl_div l1_loss log_softmax"
            " logsigmoid mse_loss nll_loss normalize relu smooth_l1_loss softmax softplus",
        ),
    }
)
METHODS: Mapping[type, frozenset[str]] = MappingProxyType(
    {
        str: _names(
            "count endswith find isalnum isalpha isdigit islower isspace isupper join lower lstrip replace rfind rstrip split"
            " splitlines startswith strip upper"
        ),
        list: _names("append extend insert pop reverse"),
        dict: _names("get items keys pop update values"),
        Tensor: _names(
            "abs argmax argmin bool clamp cumsum detach double exp flatten float gather isfinite isnan item log log1p"
            " log_softmax logsumexp long masked_fill max mean min numel relu reshape sigmoid size softmax sqrt square squeeze"
            " sum tanh tolist transpose unsqueeze view"
        ),
        TaskTokenizer: frozenset({"encode"}),
    }
)
FIELDS: Mapping[type, frozenset[str]] = MappingProxyType(
    {
        Tensor: frozenset({"dtype", "ndim", "shape"}),
        TaskTokenizer: _names(
            "all_special_ids cls_token_id mask_token_id max_length pad_token_id sep_token_id unk_token_id vocab_size"
        ),
    }
)
KEYWORDS = _names(
    "beta delta descending dim dtype ignore_index keepdim label_smoothing log_target max min p reduction reverse weight"
)
