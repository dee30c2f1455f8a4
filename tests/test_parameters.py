"""Named-array algebra, and reading hostile weights."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fl_privacy import parameters
from fl_privacy.errors import ModelError
from fl_privacy.parameters import Parameters

floats = st.floats(-1e3, 1e3, width=32)
some = st.dictionaries(
    st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5})?", fullmatch=True),
    array_shapes(max_dims=3, max_side=4).flatmap(lambda shape: arrays(np.float32, shape, elements=floats)),
    min_size=1,
    max_size=4,
)


@given(some)
def test_flatten_and_back_is_the_identity(values: Parameters) -> None:
    specs = parameters.specs_of(values)
    back = parameters.unflatten(parameters.flatten(values, specs), specs)
    assert back.keys() == values.keys()
    for name in values:
        np.testing.assert_array_equal(back[name], values[name])


@given(some)
def test_bytes_and_back_is_the_identity_and_order_does_not_matter(values: Parameters) -> None:
    blob = parameters.to_bytes(values)
    assert blob == parameters.to_bytes(dict(reversed(values.items())))
    back = parameters.from_bytes(blob)
    assert all(np.array_equal(back[name], values[name]) for name in values)


@given(some)
def test_algebra(values: Parameters) -> None:
    zero = parameters.subtract(values, values)
    assert parameters.norm(zero) == 0
    doubled = parameters.add(values, values)
    np.testing.assert_allclose(parameters.norm(doubled), 2 * parameters.norm(values), rtol=1e-6)
    assert parameters.norm(parameters.subtract(doubled, parameters.scale(values, 2.0))) == 0


def test_layouts_that_differ_are_named() -> None:
    one, two = {"a": np.zeros(2, np.float32)}, {"a": np.zeros(3, np.float32)}
    with pytest.raises(ModelError, match="'a'"):
        parameters.add(one, two)
    with pytest.raises(ModelError, match="'b'"):
        parameters.flatten(one, parameters.specs_of({"b": one["a"]}))
    with pytest.raises(ModelError, match="does not fit"):
        parameters.unflatten(np.zeros(3, np.float32), parameters.specs_of(one))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was run')",))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\0" * 100,
        pickle.dumps(Bomb()),
        parameters.to_bytes({"a": np.zeros(4, np.float32)})[:-1],
        parameters.to_bytes({"a": np.array([np.nan], np.float32)}),
        parameters.to_bytes({"a": np.array([np.inf], np.float32)}),
        parameters.to_bytes({"a": np.array([1], np.int64)}),  # type: ignore[dict-item]
    ],
)
def test_anything_but_finite_floats_in_safetensors_is_refused(blob: bytes) -> None:
    with pytest.raises(ModelError):
        parameters.from_bytes(blob)
