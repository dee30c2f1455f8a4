"""Exports that several tests read; each takes seconds to make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fl_privacy.learning.models import save_pretrained
from fl_privacy.model_spec import Head
from fl_privacy.parameters import from_bytes
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.run_folder import RunFolder
from tests.serving.runs import finished_run
from tests.tiny_families import bundle_of

Exported = Callable[[str, Head], Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The folder of an export of a tiny model, made when first asked for; beside it, after "model-", is the saved model.

    That of a BERT that fills masks is of a run, and has a model in 8 bits.
    """
    from fl_privacy.serving.onnx_export import export_model

    folder = tmp_path_factory.mktemp("exports")

    def made(family: str, head: Head) -> Path:
        out = folder / f"{family}-{head}"
        if not out.exists():
            bundle, saved = bundle_of(family, head), folder / f"model-{out.name}"
            save_pretrained(saved, bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
            is_run = (family, head) == ("bert", "mlm")
            if is_run:
                finished_run(folder / "run", bundle)
            export_model(folder / "run" if is_run else saved, out, int8=is_run)
        return out

    return made


@pytest.fixture(scope="session")
def exported_run(exported: Exported) -> tuple[TrainingPlan, Path, Path]:
    """A run's plan, its folder, and its export with a model in 8 bits."""
    out = exported("bert", "mlm")
    run = out.with_name("run")
    return RunFolder(run).settings.plan, run, out
