"""Small real things that many tests need: a tiny BERT, texts, plans, owners' folders."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import template
from fl_privacy.encryption.keys import key_name
from fl_privacy.encryption.packing import plan_encoding
from fl_privacy.encryption.registry import Registry
from fl_privacy.guard.enrolment import Enrolment, EnrolRequest
from fl_privacy.learning.models import ModelBundle, new_bundle
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.learning.tokenizer import build_vocabulary
from fl_privacy.messages import Row, Signed, sign
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_order import RoundOrder

OWNERS = ("bank", "clinic", "school")
WORDS = (
    "病人",
    "头痛",
    "三天",
    "服药",
    "学生",
    "读书",
    "春天",
    "花开",
    "客户",
    "退款",
    "订单",
    "明天",
    "今天",
    "医院",
    "老师",
    "快递",
)
CONFIG = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}

DOMAIN = """
owner = "{owner}"
title = "{owner} 测试"
description = "rows for tests"
[budget]
epsilon = {epsilon}
delta = 1e-5
accountant = "rdp"
[policy]
minimal_cohort = 3
custom_tasks = true
"""


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of a few Chinese words."""
    draw = random.Random(seed)
    return ["".join(draw.choices(WORDS, k=draw.randint(3, 8))) for _ in range(count)]


def text_rows(count: int, seed: int = 0) -> list[Row]:
    """The same sentences as rows."""
    return [Row(text=text) for text in texts(count, seed)]


def tiny_bundle(seed: int = 0) -> ModelBundle:
    """A BERT of two layers and width 16."""
    return new_bundle(CONFIG, build_vocabulary(texts(200), 100), seed, "tiny")


def tiny_plan(bundle: ModelBundle, **changes: Any) -> TrainingPlan:
    """A plan of two rounds of two steps for the three OWNERS."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "purpose": "to test the whole path",
        "model": bundle.spec,
        "owners": OWNERS,
        "rounds": 2,
        "local_steps": 2,
        "batch_size": 16,
        "max_length": 24,
        "target_epsilon": 4.0,
        "accountant": "rdp",
    }
    return TrainingPlan.create(**fields | changes)


def write_domain(folder: Path, owner: str, epsilon: float = 8.0) -> Path:
    """A domain.toml for one owner."""
    path = folder / f"{owner}.toml"
    path.write_text(DOMAIN.format(owner=owner, epsilon=epsilon), encoding="utf-8")
    return path


def enrol_all(guards: Mapping[str, Enrolment]) -> Registry:
    """All guards sign one registry and hold its HE key, as if the scientist had relayed both."""
    cards = tuple(guard.home.identity.card(owner) for owner, guard in guards.items())
    serial = max((guard.home.registry.serial for guard in guards.values() if guard.summary()), default=0) + 1
    for guard in guards.values():
        guard.enrol(EnrolRequest(cards=cards, serial=serial))
    for guard in guards.values():
        for other in guards.values():
            guard.take_signature(other.state().registry)
    registry = next(iter(guards.values())).home.require_complete_registry()
    for envelope in guards[registry.dealer].envelopes():
        guards[json.loads(envelope.body)["recipient"]].take_envelope(envelope)
    return registry


def order_for(
    plan: TrainingPlan,
    key: Ed25519PrivateKey,
    registry: Registry,
    size: int,
    secret_key: bytes,
    /,
    signer: Ed25519PrivateKey | None = None,
    **changes: Any,
) -> Signed:
    """A correct signed order for round 0 of a plan; ``changes`` make it wrong in one respect, ``signer`` signs it otherwise."""
    cohort, purpose = tuple(sorted(plan.owners)), changes.get("purpose", "train")
    fields: dict[str, Any] = {
        "plan": plan.digest(),
        "code": template.code_digest(template.render(sign(plan, key))),
        "registry": registry.digest(),
        "key": key_name(secret_key),
        "round": 0,
        "attempt": 0,
        "model": plan.model.weights,
        "tensors": order_specs(plan, purpose, changes.get("round", 0)),
        "cohort": cohort,
        "weights": (size,) * len(cohort),
        "encoding": plan_encoding(plan, (size,) * len(cohort), purpose),
    }
    return sign(RoundOrder(**fields | changes), signer or key)
