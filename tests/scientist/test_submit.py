"""What a scientist asks for is checked before anybody is asked: a task of its own, by its language and on public text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fl_privacy import template
from fl_privacy.cli import app
from fl_privacy.errors import PlanError
from fl_privacy.learning.models import ModelBundle, save_pretrained
from fl_privacy.parameters import from_bytes
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.federation import Federation
from fl_privacy.scientist.files import read_plan
from tests.builders import OWNERS, tiny_bundle, tiny_plan
from tests.scientist.fake_desks import FakeDesk

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
(EXAMPLE,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "def features(" in code)
FORBIDDEN = EXAMPLE.replace("    ids =", "    print(text)\n    ids =")
UNEQUAL = EXAMPLE.replace('"labels": labels', '"labels": labels + [0]')


@pytest.fixture
def desks() -> dict[str, FakeDesk]:
    return {owner: FakeDesk(owner) for owner in OWNERS}


@pytest.fixture
def federation(tmp_path: Path, desks: dict[str, FakeDesk]) -> Federation:
    return Federation(tmp_path / "scientist", desks)  # type: ignore[arg-type]


def write_plan(folder: Path, bundle: ModelBundle, *lines: str) -> Path:
    save_pretrained(folder / "base", bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    fields = (
        'name = "own"',
        'purpose = "to test tasks of my own"',
        f"owners = {list(OWNERS)}",
        'model = "base"',
        "max_length = 24",
    )
    path = folder / "plan.toml"
    path.write_text("\n".join((*fields, *lines)), encoding="utf-8")
    return path


def test_the_example_of_the_documentation_is_submitted_to_every_owner(
    tmp_path: Path, federation: Federation, desks: dict[str, FakeDesk]
) -> None:
    (tmp_path / "tokens.py").write_text(EXAMPLE, encoding="utf-8")
    plan, bundle = read_plan(write_plan(tmp_path, tiny_bundle(), 'task = "tokens.py"'))
    assert (plan.task, plan.custom_task) == ("custom", EXAMPLE)
    assert federation.submit(plan, bundle) == dict.fromkeys(OWNERS, "1")
    (code,) = desks["bank"].asked
    assert TrainingPlan.parse(template.signed_plan_of(code).body) == plan


def test_a_task_in_a_file_and_in_the_plan_is_the_same_plan(tmp_path: Path) -> None:
    (tmp_path / "tokens.py").write_text(EXAMPLE, encoding="utf-8")
    by_name, _ = read_plan(write_plan(tmp_path, tiny_bundle(), 'task = "tokens.py"'))
    inline, _ = read_plan(write_plan(tmp_path, tiny_bundle(), 'task = "custom"', f"custom_task = '''\n{EXAMPLE}'''"))
    assert by_name.digest() == inline.digest()


@pytest.mark.parametrize("with_bundle", [True, False])
def test_a_task_outside_the_language_fails_at_once_and_nobody_is_asked(
    federation: Federation, desks: dict[str, FakeDesk], with_bundle: bool
) -> None:
    bundle = tiny_bundle()
    plan = tiny_plan(bundle, task="custom", custom_task=FORBIDDEN)
    with pytest.raises(PlanError, match=r"custom_task, line \d+: print"):
        federation.submit(plan, bundle if with_bundle else None)
    assert not any(desk.asked for desk in desks.values())


def test_a_task_that_fails_on_a_mock_row_fails_at_once_and_nobody_is_asked(
    federation: Federation, desks: dict[str, FakeDesk]
) -> None:
    bundle = tiny_bundle()
    plan = tiny_plan(bundle, task="custom", custom_task=UNEQUAL)
    with pytest.raises(PlanError, match="custom_task fails on a public text: .*lists of equal length"):
        federation.submit(plan, bundle)
    assert not any(desk.asked for desk in desks.values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 1000}, "batch_size: 1000 is more than the corpus's declared size 990; this is so at bank"),
        ({"task": "ner"}, "task: ner needs each row's tags, but the corpus was added without .*; this is so at bank"),
        ({"task": "classification"}, "task: classification needs each row's label, .*; this is so at bank"),
    ],
)
def test_a_plan_that_a_corpus_does_not_suit_fails_at_once_and_nobody_is_asked(
    federation: Federation, desks: dict[str, FakeDesk], changes: dict[str, Any], told: str
) -> None:
    spec = tiny_bundle().spec
    labelled = spec.model_copy(update={"head": changes["task"], "labels": ("x", "y")}) if "task" in changes else spec
    with pytest.raises(PlanError, match=told):
        federation.submit(tiny_plan(tiny_bundle(), model=labelled, **changes))
    assert not any(desk.asked for desk in desks.values())


def test_a_task_is_not_tried_with_another_models_vocabulary(federation: Federation, desks: dict[str, FakeDesk]) -> None:
    plan = tiny_plan(tiny_bundle(), task="custom", custom_task=EXAMPLE)
    with pytest.raises(PlanError, match="the bundle is not that of plan 'tiny'"):
        federation.submit(plan, tiny_bundle(seed=1))
    assert not any(desk.asked for desk in desks.values())


@pytest.mark.parametrize(
    ("task", "lines", "told"),
    [
        (None, ('task = "tokens.py"',), "task = 'tokens.py' cannot be read"),
        (EXAMPLE, ('task = "tokens.py"', 'custom_task = "x = 1"'), "keep one of them"),
        (FORBIDDEN, ('task = "tokens.py"',), r"custom_task, line \d+: print"),
        (EXAMPLE.replace("    ", "\t"), ('task = "tokens.py"',), "custom_task: only printable characters"),
    ],
    ids=["missing", "twice", "outside the language", "tabs"],
)
def test_a_bad_task_file_ends_submit_before_any_log_in(
    tmp_path: Path, task: str | None, lines: tuple[str, ...], told: str
) -> None:
    if task is not None:
        (tmp_path / "tokens.py").write_text(task, encoding="utf-8")
    plan = write_plan(tmp_path, tiny_bundle(), *lines)
    result = CliRunner().invoke(app, ["submit", str(plan), "--federation", str(tmp_path / "nowhere.toml")])
    assert result.exit_code == 1
    assert re.search(f"PlanError: .*plan.toml: .*({told})", result.output), result.output
