"""The public names, pinned: adding or removing one is a decision."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fl_privacy

PINNED = {
    "AsyncFederation",
    "AuditReport",
    "AuditResult",
    "Engine",
    "FedAvg",
    "Federation",
    "FlPrivacyError",
    "History",
    "LiveRounds",
    "Login",
    "MLflow",
    "ModelBundle",
    "ModelSpec",
    "Owner",
    "RoundRecord",
    "Sums",
    "TensorBoard",
    "TrainingPlan",
    "Watcher",
    "Watchers",
    "add_corpus",
    "audit_export",
    "audit_ledgers",
    "export_ledger",
    "export_model",
    "export_registry",
    "load_bundle",
    "personal_model",
    "read_plan",
    "read_signed_registry",
    "verify_sums",
}


def test_the_public_names_are_these() -> None:
    assert set(fl_privacy.__all__) == PINNED


@pytest.mark.parametrize("name", sorted(PINNED))
def test_a_public_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(fl_privacy, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = fl_privacy.nonsense


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import sys, fl_privacy; sys.exit(bool({'torch', 'syft', 'transformers', 'tenseal'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
