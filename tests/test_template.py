"""The template is one text per signed plan, and nothing else passes for it."""

from __future__ import annotations

import ast
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.errors import PlanError, SignatureInvalid
from fl_privacy.messages import Signed, sign
from fl_privacy.model_spec import ModelSpec
from fl_privacy.plan import TrainingPlan
from fl_privacy.template import LONGEST, function_name, render, signed_plan_of

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def plan(**fields: object) -> TrainingPlan:
    model = ModelSpec(
        source="none",
        architecture=json.dumps({"model_type": "bert", "num_hidden_layers": 2, "max_position_embeddings": 64}),
        vocabulary="1" * 64,
        weights="2" * 64,
    )
    wanted = {"name": "a-plan", "purpose": "nothing but a test", "model": model, "owners": ("alba", "berg", "cove")}
    return TrainingPlan.create(**(wanted | fields))


CODE = render(sign(plan(), KEY))


def test_one_function_named_after_the_plan():
    (function,) = ast.parse(CODE).body
    assert isinstance(function, ast.FunctionDef)
    assert function.name == function_name(sign(plan(), KEY)) == f"fl_round_{plan().digest()[:16]}"
    assert [argument.arg for argument in function.args.args] == ["task", "site", "datasite"]


def test_the_text_is_unique_per_plan_and_per_scientist():
    other_key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    texts = {CODE, render(sign(plan(rounds=6), KEY)), render(sign(plan(), other_key))}
    assert len(texts) == 3


@given(purpose=st.text(min_size=10, max_size=500), source=st.text(min_size=1, max_size=200))
def test_whatever_the_plan_says_stays_inside_the_constant(purpose, source):
    try:
        model = ModelSpec.model_validate(plan().model.model_dump() | {"source": source})
        signed = sign(plan(purpose=purpose, model=model), KEY)
    except (PlanError, UnicodeEncodeError):  # lone surrogates have no UTF-8 form
        return
    code = render(signed)
    assert signed_plan_of(code) == signed
    assert len(ast.parse(code).body) == 1
    assert code.isascii()  # nothing that an editor or terminal could show differently from what runs


@given(position=st.integers(0, len(CODE) - 1), char=st.characters(codec="utf-8"))
def test_no_changed_character_passes(position, char):
    changed = CODE[:position] + char + CODE[position + 1 :]
    if changed != CODE:
        with pytest.raises(PlanError, match="the code is not the template"):
            signed_plan_of(changed)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "\0",
        "x = 1",
        "def f(task, site, datasite):\n    return 1\n",
        CODE + "\nimport os\n",
        CODE + " ",
        CODE.replace("hand_over(task, plan", "print(task, plan"),
        CODE.replace("    plan = ", "    __import__('os')\n    plan = "),
        "class C:\n    plan = '{}'\n",
        "(" * 5000 + ")" * 5000,
        CODE + "#" * LONGEST,
    ],
)
def test_other_code_is_not_the_template(code):
    with pytest.raises(PlanError, match="the code is not the template"):
        signed_plan_of(code)


def test_a_forged_plan_is_neither_rendered_nor_read():
    signed = sign(plan(), KEY)
    forged = Signed.model_validate(signed.model_dump() | {"body": plan(target_epsilon=50.0).canonical().decode()})
    with pytest.raises(SignatureInvalid):
        render(forged)
    text = CODE.replace(repr(signed.canonical().decode()), repr(forged.canonical().decode()))
    assert text != CODE
    with pytest.raises(PlanError, match="does not verify"):
        signed_plan_of(text)
