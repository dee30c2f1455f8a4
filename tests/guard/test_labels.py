"""What an owner, and nobody else, is told about the labels of its rows, and what a plan needs of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import template
from fl_privacy.cli import app
from fl_privacy.datasite.accounts import _mock
from fl_privacy.errors import PlanError
from fl_privacy.guard.corpus import add_corpus, card_of, rows_file
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.labels import Misfits, label_counts, misfits
from fl_privacy.learning.models import ModelBundle, new_bundle
from fl_privacy.learning.tokenizer import build_vocabulary
from fl_privacy.messages import Row, sign
from fl_privacy.model_spec import Head
from fl_privacy.plan import TrainingPlan
from fl_privacy.row_files import Fields, StoredRows
from tests.builders import CONFIG, texts, tiny_plan, write_domain

KEY = Ed25519PrivateKey.generate()
MOCK = [Row(text="甲乙", label="made up", tags=("B-person", "I-person"))]
FIELDS = Fields(label="class", tags="tags")


def model(head: Head, *labels: str) -> ModelBundle:
    return new_bundle(CONFIG, build_vocabulary(texts(200), 100), 0, "tiny", head=head, labels=labels)


def plan_for(head: Head, *labels: str, **changes: Any) -> TrainingPlan:
    return tiny_plan(model(head, *labels), task=head, **changes)


def labelled(path: Path) -> Path:
    """100 rows: label number % 5; every fourth has a person, and every tenth a place besides."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(100):
            tags = ["B-person" if number % 4 == 0 else "O", "I-person" if number % 4 == 0 else "O"]
            tags += ["B-place" if number % 10 == 0 else "O"]
            file.write(json.dumps({"text": f"{number:03d}", "class": f"label-{number % 5}", "tags": tags}) + "\n")
    return path


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    folder = tmp_path_factory.mktemp("labels")
    home = GuardHome.create(folder / "bank", Domain.read(write_domain(folder, "bank")))
    add_corpus(home, labelled(folder / "a.jsonl"), MOCK, FIELDS)
    yield (made := Guard(home))
    made.close()


def code_of(plan: TrainingPlan) -> str:
    return template.render(sign(plan, KEY))


@pytest.mark.parametrize(
    ("plan", "outside"),
    [
        (plan_for("classification", "label-0", "label-1"), 60),
        (plan_for("classification", *(f"label-{number}" for number in range(5))), 0),
        (plan_for("ner", "person"), 10),
        (plan_for("ner", "place"), 25),
        (plan_for("ner", "place", "person", "company"), 0),
    ],
    ids=lambda value: "-".join(value.model.labels) if isinstance(value, TrainingPlan) else str(value),
)
def test_the_owner_reads_how_many_of_its_rows_have_a_label_that_the_plan_does_not_name(
    guard: Guard, plan: TrainingPlan, outside: int
) -> None:
    assert misfits(guard.home, card_of(guard.home), plan) == Misfits(outside, 100)
    words = guard.review(code_of(plan)).words[-1]
    assert f"{outside} of your 100 rows" in words and all(repr(label) in words for label in plan.model.labels)


def test_a_task_without_labels_has_no_such_line(guard: Guard) -> None:
    assert misfits(guard.home, card_of(guard.home), plan_for("mlm")) is None
    assert not any("of your" in line for line in guard.review(code_of(plan_for("mlm"))).words)


def test_another_corpus_is_counted_anew(tmp_path: Path) -> None:
    with GuardHome.create(tmp_path / "bank", Domain.read(write_domain(tmp_path, "bank"))) as home:
        plan = plan_for("classification", "label-0", "label-1")
        first = add_corpus(home, labelled(tmp_path / "a.jsonl"), MOCK, FIELDS)
        assert misfits(home, first, plan) == Misfits(60, 100)
        (tmp_path / "b.jsonl").write_text('{"text": "x", "class": "label-1", "tags": "O"}\n' * 20)
        assert misfits(home, add_corpus(home, tmp_path / "b.jsonl", [], FIELDS), plan) == Misfits(0, 20)


def test_counts_and_names_of_labels_are_in_nothing_that_a_scientist_is_told(guard: Guard) -> None:
    """A card, the Syft asset, the ledger's statement, and the reason that a denial would quote."""
    report = guard.review(code_of(plan_for("classification", "label-0", "label-1", target_epsilon=40.0)))
    (card,) = guard.corpora()
    told = [card.model_dump(mode="json"), _mock(card), guard.info(), guard.statement().body, report.objection, report.sentence]
    for secret in ("label-2", "label-4", "B-place", "60 of", "of your"):
        assert secret not in json.dumps(told, ensure_ascii=False)
    assert "epsilon would reach" in report.objection and card.annotations == ("label", "tags")


def test_the_asset_of_a_corpus_shows_what_mock_rows_have_and_nothing_else(guard: Guard) -> None:
    asset = _mock(card_of(guard.home))
    assert asset["rows"] == [{"text": "甲乙", "label": "made up", "tags": ["B-person", "I-person"]}]


@pytest.mark.parametrize(("head", "told"), [("classification", "needs each row's label"), ("ner", "needs each row's tags")])
def test_a_plan_that_needs_what_the_corpus_has_not_is_neither_reviewed_nor_admitted(
    tmp_path: Path, head: Head, told: str
) -> None:
    with GuardHome.create(tmp_path / "bank", Domain.read(write_domain(tmp_path, "bank"))) as home:
        card = add_corpus(home, labelled(tmp_path / "a.jsonl"), [], Fields(**{"label": "class"} if head == "ner" else {}))
    plan = plan_for(head, "label-0", "label-1")
    with pytest.raises(PlanError, match=f"task: {head} {told}, but the corpus was added without"):
        plan.check_suits(card)
    guard = Guard(GuardHome(tmp_path / "bank"))
    with pytest.raises(PlanError, match=told):
        guard.approve(code_of(plan))
    guard.close()


def test_label_counts_count_rows_not_entities(guard: Guard) -> None:
    with StoredRows(rows_file(guard.home)) as rows:
        assert label_counts(rows, "label") == {f"label-{number}": 20 for number in range(5)}
        assert label_counts(rows, "tags") == {"person": 25, "place": 10}
    assert label_counts([Row(text="ab", tags=("B-x", "B-x"))], "tags") == {"x": 1}


def test_corpus_add_tells_the_owner_its_labels_and_takes_mock_rows_of_the_same_shape(tmp_path: Path) -> None:
    GuardHome.create(tmp_path / "guard", Domain.read(write_domain(tmp_path, "bank"))).close()
    (tmp_path / "mock.csv").write_text("text,class,tags\n[甲]乙,made up,B-person I-person O O\n", encoding="utf-8")
    command = ["corpus", "add", str(labelled(tmp_path / "a.jsonl")), "--home", str(tmp_path)]
    options = ["--label-field", "class", "--tags-field", "tags", "--mock", str(tmp_path / "mock.csv")]
    done = CliRunner().invoke(app, command + options)
    told = " ".join(done.output.split())
    assert done.exit_code == 0 and "bank: about 100 records (declared), 1 mock rows published" in told
    assert "label, number of rows with each (only you are told): label-0 (20), label-1 (20)" in told
    assert "tags, number of rows with each (only you are told): person (25), place (10)" in told
    refused = CliRunner().invoke(app, [*command, *options[:2], "--mock", str(tmp_path / "a.jsonl"), "--field", "body"])
    assert refused.exit_code == 1 and "line 1: no text in 'body'" in refused.output
