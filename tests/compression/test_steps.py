"""Steps of the model: what comes back, what is lost and carried, and which bytes are refused."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load, save

from fl_privacy.compression.steps import apply_step, make_step, rounded_step
from fl_privacy.errors import CompressionError
from fl_privacy.parameters import Parameters

SHAPES = array_shapes(min_dims=0, max_dims=3, max_side=4)
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
MODERATE = st.floats(-100, 100, width=32)


def tensors(elements: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[Parameters, Parameters]]:
    """A model, and another one: tensors that stay, that change, and that are new."""

    def pair(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[Any, Any]]:
        array = arrays(np.float32, shape, elements=elements)
        return st.one_of(array.map(lambda same: (same, same)), st.tuples(array, array), array.map(lambda new: (None, new)))

    names = st.text("abc_.0", min_size=1, max_size=6)
    return st.dictionaries(names, SHAPES.flatmap(pair), max_size=5).map(
        lambda pairs: (
            {name: old for name, (old, _) in pairs.items() if old is not None},
            {name: new for name, (_, new) in pairs.items()},
        )
    )


def bits_of(parameters: Parameters) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {name: (array.shape, array.astype("<f4").tobytes()) for name, array in parameters.items()}


def model(seed: int, **shapes: tuple[int, ...]) -> Parameters:
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


BASE = model(0, kept=(3, 4), moved=(8, 50))
NEXT = BASE | {"moved": BASE["moved"] + 0.01 * model(1, moved=(8, 50))["moved"]}


@given(tensors(ANY))
def test_a_step_in_32_bits_leads_to_the_very_model(pair: tuple[Parameters, Parameters]) -> None:
    base, after = pair
    assert bits_of(apply_step(base, make_step(base, after, 32))) == bits_of(after)


def test_a_step_in_32_bits_tells_zeros_of_different_signs_apart() -> None:
    base, after = {"w": np.float32([0.0, 1.0])}, {"w": np.float32([-0.0, 1.0])}
    assert bits_of(apply_step(base, make_step(base, after))) == bits_of(after)


@given(tensors(MODERATE))
def test_a_step_in_8_bits_leads_within_half_a_unit_of_the_model_and_new_tensors_come_whole(
    pair: tuple[Parameters, Parameters],
) -> None:
    base, after = pair
    reached = apply_step(base, make_step(base, after, 8))
    assert reached.keys() == after.keys()
    for name, array in reached.items():
        assert array.shape == after[name].shape and array.dtype == np.float32
        if name not in base:
            assert np.array_equal(array, after[name])
            continue
        change = np.abs(after[name] - base[name]).max()
        rounding = 2.0**-22 * np.maximum(np.abs(after[name]), np.abs(base[name])).max() + 1e-42
        assert np.abs(array - after[name]).max() <= change / 254 + rounding


@given(tensors(MODERATE), tensors(MODERATE))
def test_the_server_and_every_owner_have_the_same_bits(
    pair: tuple[Parameters, Parameters], other: tuple[Parameters, Parameters]
) -> None:
    base, after = pair
    residual = {name: array for name, array in other[1].items() if name in base and base[name].shape == array.shape}
    step = rounded_step(base, after, residual)
    assert bits_of(step.model) == bits_of(apply_step({name: array.copy() for name, array in base.items()}, step.blob))
    assert step.model.keys() == after.keys()


def test_a_step_is_decoded_by_one_product_and_one_sum_in_float32() -> None:
    """The oracle reads the file itself: safetensors is a length, a JSON header, and the tensors' bytes."""
    blob = make_step(BASE, NEXT, 8)
    (length,) = struct.unpack("<Q", blob[:8])
    header, body = json.loads(blob[8 : 8 + length]), blob[8 + length :]
    assert header.keys() == {"moved", "scale:moved"}
    pieces = {name: body[slice(*told["data_offsets"])] for name, told in header.items()}
    (unit,) = struct.unpack("<f", pieces["scale:moved"])
    whole = struct.unpack("<400b", pieces["moved"])
    old = BASE["moved"].ravel().tolist()

    def single(value: float) -> float:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])

    expected = [single(value + single(unit * number)) for value, number in zip(old, whole, strict=True)]
    assert apply_step(BASE, blob)["moved"].ravel().tolist() == expected
    assert max(map(abs, whole)) == 127


def test_a_step_has_the_same_bytes_on_every_machine() -> None:
    base = {"w": np.arange(-500, 500, dtype=np.float32).reshape(10, 100) / 7, "still": np.ones(3, np.float32)}
    after = base | {"w": base["w"] * np.float32(1.01), "new": np.float32([0.25])}
    blob = make_step(base, after, 8)
    assert hashlib.sha256(blob).hexdigest() == "8299f03816fcdb6335398b75af162f0e7c7172f6dd030c5a2491044c5ca14c98"
    assert (
        hashlib.sha256(apply_step(base, blob)["w"].tobytes()).hexdigest()
        == "2674de454f5dd018834d5958a609508456c8681a0cd602c81d7caba513918f6b"
    )


def test_equal_models_make_equal_steps_whatever_the_order_of_their_tensors() -> None:
    backwards = dict(reversed(NEXT.items()))
    assert make_step(BASE, NEXT, 8) == make_step(dict(reversed(BASE.items())), backwards, 8)


@pytest.mark.parametrize("bits", [8, 32])
def test_a_model_that_stays_makes_a_step_without_tensors(bits: Any) -> None:
    assert load(make_step(BASE, BASE, bits)) == {}
    assert apply_step(BASE, make_step(BASE, BASE, bits)) == BASE


@pytest.mark.parametrize("bits", [8, 32])
def test_only_tensors_that_changed_or_are_new_travel(bits: Any) -> None:
    after = NEXT | model(3, new=(5,))
    travelled = {name for name in load(make_step(BASE, after, bits)) if not name.startswith("scale:")}
    assert travelled == {"moved", "new"}


def test_an_8_bit_step_is_a_byte_per_coordinate() -> None:
    base, after = model(0, w=(1000, 100)), model(1, w=(1000, 100))
    whole, rounded = (len(make_step(base, after, bits)) for bits in (32, 8))
    assert 400_000 <= whole < 400_200 and 100_000 <= rounded < 100_200


def test_a_tensor_of_zeros_can_be_left_and_reached() -> None:
    zeros, ones = {"w": np.zeros(5, np.float32)}, {"w": np.ones(5, np.float32)}
    assert apply_step(zeros, make_step(zeros, ones, 8))["w"].tolist() == [1.0] * 5
    assert apply_step(ones, make_step(ones, zeros, 8))["w"].tolist() == [0.0] * 5
    assert apply_step(zeros, make_step(zeros, zeros, 8))["w"].tolist() == [0.0] * 5


@pytest.mark.parametrize("least", [1e-45, 3e-44, 2.6e-43, 1e-38])
def test_changes_near_the_least_of_float32_lead_to_no_nonsense(least: float) -> None:
    base, after = {"w": np.zeros(3, np.float32)}, {"w": np.float32([least, -least, 0])}
    with np.errstate(all="raise", under="ignore"):
        reached = apply_step(base, make_step(base, after, 8))["w"]
    assert np.abs(reached - after["w"]).max() <= np.float32(least)


def test_what_8_bits_lose_is_carried_until_the_steps_add_up() -> None:
    draw, reached, residual = np.random.default_rng(4), dict(BASE), dict[str, Any]()
    meant = {name: array.astype(np.float64) for name, array in BASE.items()}
    for number in range(60):
        moves = {"moved": 0.01 * draw.normal(size=(8, 50))} if number % 3 else {"kept": draw.normal(size=(3, 4))}
        moves = {name: move.astype(np.float32) for name, move in moves.items()}
        target = reached | {name: reached[name] + move for name, move in moves.items()}
        meant |= {name: meant[name] + move for name, move in moves.items()}
        still = {name: array for name, array in residual.items() if name not in moves}
        blob, reached, residual = rounded_step(reached, target, residual)
        assert still.items() <= {name: residual[name] for name in still}.items()
    for name in BASE:
        assert np.abs(reached[name] + residual[name] - meant[name]).max() < 1e-4
        assert np.abs(residual[name]).max() > 0
        assert np.abs(reached[name] - meant[name]).max() < 0.03  # one step's loss, not sixty


def test_without_the_residual_the_same_losses_add_up() -> None:
    """A drift below half a unit is lost in every step, and reached in the end only where it is carried."""
    move = np.float32([1.0] + [0.003] * 99)  # the unit is 1/127
    carried, dropped, residual = {"w": np.zeros(100, np.float32)}, {"w": np.zeros(100, np.float32)}, dict[str, Any]()
    for _ in range(100):
        _, carried, residual = rounded_step(carried, {"w": carried["w"] + move}, residual)
        dropped = rounded_step(dropped, {"w": dropped["w"] + move}, {}).model
    assert np.abs(carried["w"] - 100 * move).max() < 0.01
    assert not dropped["w"][1:].any()


def _step(**arrays_: Any) -> bytes:
    return save({name.replace("scale_", "scale:"): np.asarray(array) for name, array in arrays_.items()})


ONE = np.float32(1)
UNIT = np.ones((8, 50), np.int8)
REFUSED = {
    "nothing at all": (b"", "not a safetensors file"),
    "no safetensors": (b"pickle" * 100, "not a safetensors file"),
    "cut short": (make_step(BASE, NEXT, 8)[:-1], "not a safetensors file"),
    "unknown tensor in int8": (_step(other=UNIT, scale_other=ONE), "'other', which the model does not have"),
    "int8 in another shape": (_step(moved=UNIT.T, scale_moved=ONE), r"'moved' in shape \(50, 8\), the model in \(8, 50\)"),
    "float32 in another shape": (_step(moved=np.ones(400, np.float32)), "'moved' in shape"),
    "one that would be broadcast": (_step(moved=np.ones((1, 50), np.int8), scale_moved=ONE), "'moved' in shape"),
    "difference without scale": (_step(moved=UNIT), "no scale for the difference of tensor 'moved'"),
    "scale without difference": (_step(scale_moved=ONE), "'scale:moved' without a difference"),
    "scale of a whole tensor": (_step(moved=NEXT["moved"], scale_moved=ONE), "'scale:moved' without a difference"),
    "scale in int8": (_step(moved=UNIT, scale_moved=np.int8(1)), "'scale:moved' is not one finite float32"),
    "scale for each row": (_step(moved=UNIT, scale_moved=np.ones(8, np.float32)), "'scale:moved' is not one finite float32"),
    "scale that is NaN": (_step(moved=UNIT, scale_moved=np.float32(np.nan)), "'scale:moved' is not one finite float32"),
    "scale below zero": (_step(moved=UNIT, scale_moved=-ONE), "'scale:moved' is not one finite float32"),
    "NaN": (_step(moved=np.full((8, 50), np.nan, np.float32)), "'moved' holds a value that is not finite"),
    "new NaN": (_step(new=np.float32([np.inf])), "'new' holds a value that is not finite"),
    "float64": (_step(moved=np.ones((8, 50))), "'moved' in type float64"),
    "float16": (_step(moved=np.ones((8, 50), np.float16)), "'moved' in type float16"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_step_that_is_malformed_or_does_not_fit_is_refused(what: str) -> None:
    step, why = REFUSED[what]
    with pytest.raises(CompressionError, match=why):
        apply_step(BASE, step)


def test_a_step_beyond_float32_is_refused() -> None:
    base = {"w": np.float32([3e38])}
    with pytest.raises(CompressionError, match="'w' holds a value that is not finite"):
        apply_step(base, _step(w=np.int8([127]), scale_w=np.float32(1e37)))
    with pytest.raises(CompressionError, match="'w' changes by more than float32 holds"):
        make_step(base, {"w": np.float32([-3e38])}, 8)


@given(st.binary(max_size=300), st.integers(0, 9999), st.integers(0, 255))
def test_spoiled_steps_end_in_the_typed_error_or_a_model_of_the_same_form(blob: bytes, place: int, value: int) -> None:
    right = bytearray(make_step(BASE, NEXT, 8))
    right[place % len(right)] = value
    for step in (blob, bytes(right)):
        try:
            after = apply_step(BASE, step)
        except CompressionError:
            continue
        assert all(np.isfinite(array).all() for array in after.values())
        assert all(after[name].shape == array.shape for name, array in BASE.items())


@pytest.mark.parametrize("bits", [8, 32])
def test_models_that_no_step_leads_to_are_refused(bits: Any) -> None:
    refused: list[tuple[Parameters, str]] = [
        ({"kept": BASE["kept"]}, "the model lacks 'moved'"),
        (BASE | {"moved": np.ones(400, np.float32)}, "'moved' has shape"),
        (BASE | {"moved": np.full((8, 50), np.nan, np.float32)}, "'moved' holds a value that is not finite"),
        (BASE | {"new": np.float32([np.inf])}, "'new' holds a value that is not finite"),
    ]
    for after, why in refused:
        with pytest.raises(CompressionError, match=why):
            make_step(BASE, after, bits)
