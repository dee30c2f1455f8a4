"""A step from the model that owners have to the next one, as small as what has changed, and in 8 bits if asked.

A step is a safetensors file. A tensor under its own name in float32 is the new one, whole. One in int8 is a difference in
units of the float32 that stands beside it as ``scale:name``: new = old + unit * difference, two roundings to float32, which
every machine does alike. Tensors that a step does not name stay as they are.

The rounding of 8 bits is carried by the server: it adds what was lost of a tensor to the next step of that tensor
(``rounded_step``), so losses do not add up. A step is public, as the model is; both are made of opened sums alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fl_privacy.errors import CompressionError
from fl_privacy.parameters import Parameters, Vector

LARGEST_COMPOSED = (
    1 << 30
)  # bytes of model and step together that an owner puts together; for a moment it takes four times as much
_SCALE = "scale:"  # no tensor name holds a colon
_TOP = 127  # the largest difference in int8

_Array = NDArray[Any]


class RoundedStep(NamedTuple):
    """A step in 8 bits, the model that everybody has after it, and what it still lacks of the one that was meant."""

    blob: bytes
    model: Parameters
    residual: Parameters


def make_step(base: Parameters, model: Parameters, bits: Literal[8, 32] = 32) -> bytes:
    """The step from ``base`` to ``model``: equal parameters give equal bytes.

    With 32 bits ``apply_step`` gives ``model``, bit for bit. With 8 bits tensors of the base are off by at most 1/254 of their
    largest change (and float32's rounding), and new ones come whole.
    Raises: CompressionError when the model lacks a tensor of the base, has it in another shape, or is not finite.
    """
    _check_model(base, model)
    arrays: dict[str, _Array] = {}
    for name in sorted(model):
        if name not in base or (bits == 32 and not _same_bits(base[name], model[name])):
            arrays[name] = np.asarray(model[name], np.float32, order="C")
        elif bits == 8 and not np.array_equal(base[name], model[name]):
            arrays[name], arrays[_SCALE + name] = _rounded_difference(base[name], model[name], name)
    return save(arrays)


def apply_step(base: Parameters, step: bytes) -> Parameters:
    """The model after a step, the same bits on every machine; tensors that did not change are the base's own.

    The step has to be for this very base; an order says so by the hashes of both.
    Raises: CompressionError naming the tensor that is malformed, not finite, or does not fit the base.
    """
    arrays = _parsed(step)
    model = dict(base)
    for name in sorted(arrays):
        if name.startswith(_SCALE):
            continue
        array = arrays[name]
        if name in base and base[name].shape != array.shape:
            raise CompressionError(f"the step has tensor {name!r} in shape {array.shape}, the model in {base[name].shape}")
        model[name] = array if array.dtype == np.float32 else _moved(base, name, array, arrays)
        if not np.isfinite(model[name]).all():
            raise CompressionError(f"after the step tensor {name!r} holds a value that is not finite")
    return model


def rounded_step(base: Parameters, model: Parameters, residual: Parameters) -> RoundedStep:
    """A step of 8 bits towards ``model``, and what earlier steps lost of the tensors that it changes.

    The server goes on from the returned model, as the owners do. Over all steps, the models meant and those reached differ by
    the last residual (but for float32's rounding). What is left of tensors that do not change now waits for their next change.

    Args: residual is the one that the last step returned, at first empty. Raises: CompressionError.
    """
    changed = [name for name in model if name in base and not np.array_equal(base[name], model[name])]
    meant = model | {name: model[name] + residual[name] for name in changed if name in residual}
    blob = make_step(base, meant, 8)
    reached = apply_step(base, blob)
    return RoundedStep(blob, reached, residual | {name: meant[name] - reached[name] for name in changed})


def _rounded_difference(old: Vector, new: Vector, name: str) -> tuple[NDArray[np.int8], Vector]:
    """The difference in whole units, to the nearest, and the unit: 1/127 of the largest."""
    with np.errstate(over="ignore"):
        difference = np.asarray(new - old, np.float32)
    unit = np.float32(np.abs(difference).max() / np.float32(_TOP))
    if not np.isfinite(unit):
        raise CompressionError(f"tensor {name!r} changes by more than float32 holds; the training diverged")
    if not unit:  # float32 has no unit for a change as small as that
        return np.zeros(difference.shape, np.int8), np.asarray(unit)
    whole = np.clip(np.rint(difference / unit), -_TOP, _TOP)
    return np.asarray(whole, np.int8), np.asarray(unit)


def _moved(base: Parameters, name: str, difference: _Array, arrays: Mapping[str, _Array]) -> Vector:
    if name not in base:
        raise CompressionError(f"the step changes tensor {name!r}, which the model does not have")
    with np.errstate(over="ignore"):  # what is not finite is refused
        change = difference.astype(np.float32) * np.float32(arrays[_SCALE + name].item())
        return np.asarray(base[name] + change, np.float32)


def _parsed(step: bytes) -> dict[str, _Array]:
    """The arrays of a step, whole or with one scale for each difference."""
    try:
        arrays: dict[str, _Array] = load(step)
    except (SafetensorError, ValueError, KeyError) as problem:
        raise CompressionError(f"the step is not a safetensors file: {problem}") from problem
    for name, array in arrays.items():
        if name.startswith(_SCALE):
            _check_scale(name, array, arrays.get(name.removeprefix(_SCALE)))
        elif array.dtype not in (np.float32, np.int8):
            raise CompressionError(f"the step has tensor {name!r} in type {array.dtype}, expected float32 or int8")
        elif array.dtype == np.int8 and _SCALE + name not in arrays:
            raise CompressionError(f"the step has no scale for the difference of tensor {name!r}")
    return arrays


def _check_scale(name: str, scale: _Array, difference: _Array | None) -> None:
    if difference is None or difference.dtype != np.int8:
        raise CompressionError(f"the step has {name!r} without a difference in int8")
    if scale.shape != () or scale.dtype != np.float32 or not np.isfinite(scale) or scale < 0:
        raise CompressionError(f"the step's {name!r} is not one finite float32 from zero on")


def _check_model(base: Parameters, model: Parameters) -> None:
    if missing := sorted(base.keys() - model.keys()):
        raise CompressionError(f"a step cannot take tensors away: the model lacks {missing[0]!r}")
    for name, array in model.items():
        if name in base and base[name].shape != array.shape:
            raise CompressionError(f"tensor {name!r} has shape {array.shape}, expected {base[name].shape} as before")
        if not np.isfinite(array).all():
            raise CompressionError(f"tensor {name!r} holds a value that is not finite; no step leads there")


def _same_bits(left: Vector, right: Vector) -> bool:
    """Whether two arrays are the same bytes; zeros of different signs are equal, and not the same."""
    return bool(np.array_equal(left, right) and np.array_equal(np.signbit(left), np.signbit(right)))
