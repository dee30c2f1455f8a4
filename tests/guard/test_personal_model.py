"""An owner's own model: what all trained, with its own layers and head in place, and nothing where there are none."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForSequenceClassification

from fl_privacy import template
from fl_privacy.cli import app
from fl_privacy.errors import FlPrivacyError, HomeError, ModelError, PlanError
from fl_privacy.guard.worker import Job
from fl_privacy.learning.local_start import own_specs
from fl_privacy.learning.models import load_bundle, save_pretrained
from fl_privacy.messages import sign
from fl_privacy.owner_files import personal_model
from fl_privacy.parameters import from_bytes, to_bytes
from tests.builders import tiny_plan
from tests.guard.protocol import Worker
from tests.scientist.test_layers_by_round import LABELS, a_bundle, strongrooms, trained

BUNDLE = a_bundle(3, head="classification", labels=LABELS)


class Keeping(Worker):
    """A worker whose owners keep numbers of their own, other ones in each round."""

    def run(self, job: Job, on_step: Callable[[int, int], None], started: Callable[[int], None]) -> None:
        super().run(job, on_step, started)
        own = {spec.name: np.full(spec.shape, value_of(job.owner, job.round), np.float32) for spec in own_specs(job.plan)}
        Path(job.own_after).write_bytes(to_bytes(own))


def value_of(owner: str, round_index: int) -> float:
    return sum(map(ord, owner)) / 1000 + round_index


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``home``, an owner after a ``run`` of two rounds; ``idle``, one that approved two plans of a name and trained none."""
    folder = tmp_path_factory.mktemp("federation")
    fields: dict[str, Any] = {"task": "classification", "rounds": 2, "local_layers": "2-2", "name": "split"}
    with pytest.MonkeyPatch.context() as patch, strongrooms(folder, BUNDLE, **fields) as rooms:
        patch.setattr("fl_privacy.guard.worker.run", Keeping().run)
        trained(rooms, folder / "run")
    (folder / "others").mkdir()
    with strongrooms(folder / "others", BUNDLE, **fields) as rooms:
        bank = rooms.guards["bank"]
        for other in ({"rounds": 3}, {"local_layers": "", "name": "whole", "rounds": 1}):
            bank.approve(template.render(sign(tiny_plan(BUNDLE, **fields | {"target_epsilon": 2.0} | other), rooms.key)))
        (folder / "digest").write_text(rooms.plan.digest())
    for source, name in ((folder, "home"), (folder / "others", "idle")):
        (folder / name).mkdir()
        (source / "bank").rename(folder / name / "guard")
    return folder


def test_it_is_what_all_trained_with_the_owners_latest_own_layers_in_place(federation: Path, tmp_path: Path) -> None:
    personal_model(federation / "home", "split", federation / "run" / "model", tmp_path / "own")
    shared, made = (
        load_bundle(path, head="classification", labels=LABELS) for path in (federation / "run/model", tmp_path / "own")
    )
    before, after = from_bytes(shared.weights), from_bytes(made.weights)
    value = np.float32(value_of("bank", 1))
    own = {name for name in after if name.startswith(("bert.encoder.layer.2.", "bert.pooler.", "classifier."))}
    assert own and all((after[name] == value).all() for name in own)
    assert all(np.array_equal(after[name], before[name]) for name in after.keys() - own)
    assert any(not np.array_equal(before[name], array) for name, array in from_bytes(BUNDLE.weights).items()), (
        "the run moved it"
    )
    assert not any(np.array_equal(before[name], after[name]) for name in own)
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "own")
    assert torch.equal(model.classifier.weight, torch.full_like(model.classifier.weight, float(value)))
    assert list(model.config.id2label.values()) == list(LABELS)


def cli(home: Path, plan: str, model: Path, out: Path) -> Result:
    return CliRunner().invoke(app, ["owner", "personal-model", "-H", str(home), "--plan", plan, str(model), str(out)])


def test_the_command_takes_the_beginning_of_a_digest(federation: Path, tmp_path: Path) -> None:
    (approval,) = (federation / "home" / "guard" / "approvals").iterdir()
    result = cli(federation / "home", approval.stem[:12], federation / "run" / "model", tmp_path / "own")
    assert result.exit_code == 0 and "own model of plan" in result.output
    assert (tmp_path / "own" / "model.safetensors").exists()


def refused(error: type[FlPrivacyError], told: str, home: Path, plan: str, model: Path, out: Path) -> None:
    before = sorted(out.iterdir()) if out.exists() else None
    with pytest.raises(error, match=told):
        personal_model(home, plan, model, out)
    assert (sorted(out.iterdir()) if out.exists() else None) == before, "nothing was written"


def test_without_own_layers_there_is_no_own_model(federation: Path, tmp_path: Path) -> None:
    idle, model = federation / "idle", federation / "run" / "model"
    refused(PlanError, "'whole' has no local_layers: its model is the same", idle, "whole", model, tmp_path / "a")
    digest = (federation / "digest").read_text()
    refused(HomeError, "bank keeps no own layers of plan 'split'", idle, digest, model, tmp_path / "a")


def test_two_plans_of_a_name_are_told_apart_by_digest(federation: Path, tmp_path: Path) -> None:
    told = rf"2 plans go by 'split': .*{(federation / 'digest').read_text()[:16]}…"
    refused(PlanError, told, federation / "idle", "split", federation / "run" / "model", tmp_path / "a")


@pytest.mark.parametrize("plan", ["spilt", "f" * 64, ""])
def test_a_plan_that_the_owner_never_decided_about_is_refused(federation: Path, tmp_path: Path, plan: str) -> None:
    refused(
        PlanError,
        f"bank has decided about no plan '{plan}'",
        federation / "home",
        plan,
        federation / "run/model",
        tmp_path / "a",
    )


def test_a_foreign_model_is_refused(federation: Path, tmp_path: Path) -> None:
    for name, other in (("deep", a_bundle(4, head="classification", labels=LABELS)), ("bare", BUNDLE)):
        vocabulary = other.vocabulary if name == "deep" else other.vocabulary.replace("病".encode(), "籼".encode())
        spec = other.spec if name == "deep" else other.spec.model_copy(update={"vocabulary": sha256(vocabulary).hexdigest()})
        save_pretrained(tmp_path / name, spec, vocabulary, from_bytes(other.weights))
        what = {"deep": "architecture", "bare": "vocabulary"}[name]
        told = f"is not a model of plan 'split': it has another {what}"
        refused(ModelError, told, federation / "home", "split", tmp_path / name, tmp_path / "a")


def test_nothing_is_written_over(federation: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    refused(HomeError, "is not empty; choose a new folder", federation / "home", "split", federation / "run/model", tmp_path)
