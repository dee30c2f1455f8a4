"""What an owner is told about a plan that sums in CKKS, and that its policy decides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import template
from fl_privacy.errors import NotApproved
from fl_privacy.guard.corpus import add_corpus
from fl_privacy.guard.domain import Domain, Policy
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.review import Review, check_approvable, review
from fl_privacy.guard.sandbox import Isolation
from fl_privacy.messages import sign
from tests.builders import OWNERS, text_rows, texts, tiny_bundle, tiny_plan, write_domain

BUNDLE = tiny_bundle()
ISOLATED = Isolation(network="isolated", files="isolated")


@pytest.fixture(params=[False, True], ids=["refused by policy", "allowed by policy"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GuardHome]:
    """A guard's folder, with ``allow_ckks`` as the parameter says."""
    domain = Domain.read(write_domain(tmp_path, OWNERS[0]))
    policy = Policy(minimal_cohort=3, allow_ckks=request.param)
    yield (made := GuardHome.create(tmp_path / "home", domain.model_copy(update={"policy": policy})))
    made.close()


def reviewed(home: GuardHome, tmp_path: Path, encryption: str) -> Review:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts(200)), encoding="utf-8")
    card = add_corpus(home, file, text_rows(5, seed=99))
    plan = tiny_plan(BUNDLE, encryption=encryption)
    return review(template.render(sign(plan, Ed25519PrivateKey.generate())), home, card, ISOLATED)


def test_a_plan_with_ckks_is_reviewed_with_a_warning_and_approvable_only_by_policy(home: GuardHome, tmp_path: Path) -> None:
    report = reviewed(home, tmp_path, "ckks")
    (warning,) = [line for line in report.words if line.startswith("WARNING")]
    assert "without masks" in warning and "any one of the other owners can read" in warning
    (leaves,) = [line for line in report.words if line.startswith("What leaves")]
    assert "not masked" in leaves and "quantised" not in leaves
    if home.domain.policy.allow_ckks:
        assert report.objection == ""
        check_approvable(report)
    else:
        assert "does not allow" in report.objection
        with pytest.raises(NotApproved, match="CKKS"):
            check_approvable(report)


def test_a_plan_with_bfv_is_reviewed_without_warning_whatever_the_policy(home: GuardHome, tmp_path: Path) -> None:
    report = reviewed(home, tmp_path, "bfv")
    assert not any("WARNING" in line for line in report.words) and report.objection == ""
    assert any("quantised, masked and encrypted" in line for line in report.words)
    check_approvable(report)


def test_the_policy_of_an_owner_who_says_nothing_does_not_allow_ckks(tmp_path: Path) -> None:
    assert not Domain.read(write_domain(tmp_path, OWNERS[0])).policy.allow_ckks
