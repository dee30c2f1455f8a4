"""Named-array algebra: a model, an update or a sum is a mapping from tensor name to a float32 array."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fl_privacy.errors import ModelError
from fl_privacy.messages import TensorSpec

Vector = NDArray[np.float32]
Parameters = dict[str, Vector]


def specs_of(parameters: Mapping[str, Vector]) -> tuple[TensorSpec, ...]:
    """Names and shapes, sorted by name: the order in which every party flattens."""
    return tuple(TensorSpec(name=name, shape=parameters[name].shape) for name in sorted(parameters))


def count(specs: Sequence[TensorSpec]) -> int:
    """Number of coordinates in a tensor list."""
    return sum(math.prod(spec.shape) for spec in specs)


def subtract(left: Mapping[str, Vector], right: Mapping[str, Vector]) -> Parameters:
    """left - right, over the same names and shapes."""
    _same_layout(left, right)
    return {name: left[name] - right[name] for name in left}


def add(left: Mapping[str, Vector], right: Mapping[str, Vector]) -> Parameters:
    """left + right, over the same names and shapes."""
    _same_layout(left, right)
    return {name: left[name] + right[name] for name in left}


def scale(parameters: Mapping[str, Vector], factor: float) -> Parameters:
    """factor * parameters."""
    return {name: np.float32(factor) * array for name, array in parameters.items()}


def norm(parameters: Mapping[str, Vector]) -> float:
    """Euclidean norm over all tensors together."""
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in parameters.values()))


def flatten(parameters: Mapping[str, Vector], specs: Sequence[TensorSpec]) -> Vector:
    """One vector (count(specs),) in the order of ``specs``; raises ModelError on a missing name or another shape."""
    for spec in specs:
        if spec.name not in parameters:
            raise ModelError(f"tensor {spec.name!r} is missing")
        if parameters[spec.name].shape != spec.shape:
            raise ModelError(f"tensor {spec.name!r} has shape {parameters[spec.name].shape}, expected {spec.shape}")
    return np.concatenate([parameters[spec.name].astype(np.float32, copy=False).ravel() for spec in specs])


def flatten_or_zero(parameters: Mapping[str, Vector], specs: Sequence[TensorSpec]) -> Vector:
    """As ``flatten``, with zeros for a tensor that is missing."""
    return flatten({spec.name: np.zeros(spec.shape, np.float32) for spec in specs} | dict(parameters), specs)


def unflatten(vector: Vector, specs: Sequence[TensorSpec]) -> Parameters:
    """The inverse of ``flatten``; raises ModelError when the length does not fit."""
    if vector.shape != (count(specs),):
        raise ModelError(f"a vector of shape {vector.shape} does not fit {count(specs)} coordinates")
    pieces: Parameters = {}
    start = 0
    for spec in specs:
        size = math.prod(spec.shape)
        pieces[spec.name] = vector[start : start + size].reshape(spec.shape)
        start += size
    return pieces


def to_bytes(parameters: Mapping[str, Vector]) -> bytes:
    """Safetensors form, tensors sorted by name, so that equal parameters give equal bytes."""
    return save({name: np.ascontiguousarray(parameters[name]) for name in sorted(parameters)})


def from_bytes(blob: bytes) -> Parameters:
    """Parse a safetensors blob (never pickle) into float32 arrays; raises ModelError on anything else."""
    try:
        arrays = load(blob)
    except (SafetensorError, ValueError, KeyError) as problem:
        raise ModelError(f"not a safetensors file: {problem}") from problem
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise ModelError(f"tensor {name!r} has type {array.dtype}, expected floating point")
        if not np.isfinite(array).all():
            raise ModelError(f"tensor {name!r} holds a value that is not finite")
    return {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}


def _same_layout(left: Mapping[str, Vector], right: Mapping[str, Vector]) -> None:
    if left.keys() != right.keys():
        raise ModelError(f"tensor names differ: {sorted(left.keys() ^ right.keys())[:3]}")
    for name in left:
        if left[name].shape != right[name].shape:
            raise ModelError(f"tensor {name!r}: shapes {left[name].shape} and {right[name].shape} differ")
