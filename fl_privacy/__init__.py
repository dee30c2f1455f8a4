"""Federated training of language models on text that may not be shared.

The names below are the public ones; everything else may change. They are imported when first used, because a guard must
never load Syft, nor a ledger's auditor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_privacy.auditor import Sums, audit_ledgers, verify_sums
    from fl_privacy.display_runs import LiveRounds
    from fl_privacy.errors import FlPrivacyError
    from fl_privacy.learning.models import ModelBundle, load_bundle
    from fl_privacy.model_spec import ModelSpec
    from fl_privacy.owner import Owner
    from fl_privacy.owner_files import add_corpus, export_ledger, export_registry, personal_model, read_signed_registry
    from fl_privacy.plan import TrainingPlan
    from fl_privacy.privacy.audit import AuditResult, audit_export
    from fl_privacy.privacy.report import AuditReport
    from fl_privacy.scientist.async_federation import AsyncFederation
    from fl_privacy.scientist.federation import Federation, Login
    from fl_privacy.scientist.files import read_plan
    from fl_privacy.scientist.history import History, RoundRecord, Watcher, Watchers
    from fl_privacy.scientist.mlflow_tracking import MLflow
    from fl_privacy.scientist.tracking import TensorBoard
    from fl_privacy.serving.engine import Engine
    from fl_privacy.serving.onnx_export import export_model
    from fl_privacy.strategies.fedavg import FedAvg

__version__ = "0.1.0"

_HOMES = {
    "AsyncFederation": "scientist.async_federation",
    "AuditReport": "privacy.report",
    "AuditResult": "privacy.audit",
    "Engine": "serving.engine",
    "FedAvg": "strategies.fedavg",
    "Federation": "scientist.federation",
    "FlPrivacyError": "errors",
    "History": "scientist.history",
    "LiveRounds": "display_runs",
    "Login": "scientist.federation",
    "MLflow": "scientist.mlflow_tracking",
    "ModelBundle": "learning.models",
    "ModelSpec": "model_spec",
    "Owner": "owner",
    "RoundRecord": "scientist.history",
    "Sums": "auditor",
    "TensorBoard": "scientist.tracking",
    "TrainingPlan": "plan",
    "Watcher": "scientist.history",
    "Watchers": "scientist.history",
    "add_corpus": "owner_files",
    "audit_export": "privacy.audit",
    "audit_ledgers": "auditor",
    "export_ledger": "owner_files",
    "export_model": "serving.onnx_export",
    "export_registry": "owner_files",
    "load_bundle": "learning.models",
    "personal_model": "owner_files",
    "read_plan": "scientist.files",
    "read_signed_registry": "owner_files",
    "verify_sums": "auditor",
}

__all__ = [
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
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
