"""The one piece of code that an owner is asked to approve: a signed plan, and a fixed call that hands orders to the guard.

The text is a pure function of the signed plan, so an owner's guard reviews it by rendering it again and comparing; nothing
that a scientist submits is ever interpreted, only compared.
"""

from __future__ import annotations

import ast
import hashlib

from fl_privacy.errors import MessageError, PlanError
from fl_privacy.messages import Signed, open_signed
from fl_privacy.plan import TrainingPlan

LONGEST = 200_000
REVOKED = "approval revoked: "  # what a request's reason begins with once its approval was taken back; Syft knows only denials

_TEMPLATE = '''\
def {name}(task, site, datasite):
    """Hand one message to this owner's guard, which admits or refuses it. What is approved is the plan below, no more."""
    from fl_privacy.datasite.front_desk import hand_over

    plan = {plan!a}
    return hand_over(task, plan, datasite)
'''


def render(signed_plan: Signed) -> str:
    """The source of the function for one signed plan.

    Args: signed_plan holds a TrainingPlan, signed by the scientist. Returns: the text of one Python function.
    Raises: SignatureInvalid, MessageError.
    """
    open_signed(signed_plan, TrainingPlan, signed_plan.signer)
    return _TEMPLATE.format(name=function_name(signed_plan), plan=signed_plan.canonical().decode())


def function_name(signed_plan: Signed) -> str:
    """``fl_round_`` and the first 16 hex digits of the plan's digest."""
    return f"fl_round_{TrainingPlan.parse(signed_plan.body).digest()[:16]}"


def code_digest(code: str) -> str:
    """sha256 of the source text: the name under which an owner approves it."""
    return hashlib.sha256(code.encode()).hexdigest()


def signed_plan_of(code: str) -> Signed:
    """The signed plan inside a rendered template, without running anything.

    Returns: the plan, its signature verified against the key that it names; whether that key is a known scientist's is
    for the caller to check.
    Raises: PlanError when the text is not exactly the template.
    """
    if len(code) > LONGEST:
        raise PlanError(f"the code is not the template: it is longer than {LONGEST} characters")
    try:
        function = ast.parse(code).body[0]
        if not isinstance(function, ast.FunctionDef):
            raise PlanError("the code is not the template: it is not one function")
        signed = Signed.parse(_plan_constant(function))
        expected = render(signed)
    except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError):
        raise PlanError("the code is not the template: it is not Python source") from None
    except MessageError as problem:
        raise PlanError(f"the code is not the template: {problem}") from None
    if code != expected:
        raise PlanError("the code is not the template: its text differs from what its plan renders to")
    return signed


def expected_text(code: str) -> str:
    """What the vetted template renders for the plan inside ``code``, or with a placeholder where no signed plan is found.

    For comparison by people; the code may be anything.
    """
    try:
        function = ast.parse(code[:LONGEST]).body[0]
        if isinstance(function, ast.FunctionDef):
            return render(Signed.parse(_plan_constant(function)))
    except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError, PlanError, MessageError):
        pass  # no plan to be found in it
    return _TEMPLATE.format(name="fl_round_<digest>", plan="<signed plan>")


def _plan_constant(function: ast.FunctionDef) -> str:
    for statement in function.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="plan")], value=ast.Constant(value=str(text))):
                return text
    raise PlanError("the code is not the template: it holds no plan")
