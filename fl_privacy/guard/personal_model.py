"""An owner's own model (FedSplitBERT): the layers that all owners trained, from the scientist, with this owner's own in place.

Source: Lit et al. 2022, arXiv 2205.13299.
"""

from __future__ import annotations

from pathlib import Path

from fl_privacy.errors import HomeError, ModelError, PlanError
from fl_privacy.guard.approvals import Approvals
from fl_privacy.guard.carried import latest
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.orders import OWN_LAYERS, Orders
from fl_privacy.learning.models import load_bundle, save_pretrained
from fl_privacy.parameters import from_bytes
from fl_privacy.plan import TrainingPlan


def save_personal_model(home: GuardHome, told: str, model: Path, out: Path) -> TrainingPlan:
    """Write a run's ``model/`` with this owner's latest own layers and head in place; returns the plan.

    Args: told is the plan's name, its digest, or the beginning of its digest; model is the
        folder ``model/``; out is a new folder, which the library's ``Auto`` classes read.
    Raises: PlanError when there is no such plan, more than one, or one without own layers; HomeError when none are kept or
        ``out`` holds anything; ModelError when ``model`` is not a model of this plan.
    Privacy: own layers come of the same DP-SGD as the updates and are within the plan's epsilon, which is this owner's alone
        there: no sum over owners hides them. Whether they are shown to anybody is the owner's to decide.
    """
    plan = _plan(home, told)
    if not plan.local_layers:
        raise PlanError(f"plan {plan.name!r} has no local_layers: its model is the same for all owners, the scientist has it")
    kept = latest(Orders(home.folder).of_plan(plan.digest()), OWN_LAYERS)
    if kept is None:
        raise HomeError(f"{home.owner} keeps no own layers of plan {plan.name!r}: it has trained none, or was revoked")
    shared, own = load_bundle(model, head=plan.model.head, labels=plan.model.labels), from_bytes(kept.read_bytes())
    for field in ("architecture", "vocabulary"):
        if getattr(shared.spec, field) != getattr(plan.model, field):
            raise ModelError(f"{model} is not a model of plan {plan.name!r}: it has another {field}")
    if out.exists() and any(out.iterdir()):
        raise HomeError(f"{out} is not empty; choose a new folder")
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    save_pretrained(out, plan.model, shared.vocabulary, from_bytes(shared.weights) | own)
    return plan


def _plan(home: GuardHome, told: str) -> TrainingPlan:
    plans = [decision.training_plan for decision in Approvals(home).all()]
    found = [plan for plan in plans if plan.name == told] or [plan for plan in plans if told and plan.digest().startswith(told)]
    if not found:
        raise PlanError(f"{home.owner} has decided about no plan {told!r}; give the name or digest of one that it approved")
    if len(found) > 1:
        digests = ", ".join(f"{plan.digest()[:16]}…" for plan in found)
        raise PlanError(f"{len(found)} plans go by {told!r}: {digests}; give the beginning of a digest")
    return found[0]
