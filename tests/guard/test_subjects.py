"""Corpora whose unit is a subject: what is kept of whom, what is told, and that training samples persons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import template
from fl_privacy.errors import CorpusError
from fl_privacy.guard.corpus import add_corpus, card_of, rows_file
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.worker import Job
from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import open_signed, public_hex, sign
from fl_privacy.round_order import RoundOrder
from fl_privacy.row_files import Fields, StoredRows
from tests.builders import enrol_all, order_for, text_rows, texts, tiny_bundle, tiny_plan, write_domain
from tests.guard.conftest import finished, make_guard, upload

PERSONS, ROWS = 40, 160
BUNDLE, KEY = tiny_bundle(), Ed25519PrivateKey.generate()


def new_home(folder: Path, unit: str = "subject", owner: str = "bank") -> GuardHome:
    file = write_domain(folder, owner)
    file.write_text(file.read_text().replace("[budget]\n", f'[budget]\nunit = "{unit}"\n'))
    return GuardHome.create(folder / owner, Domain.read(file))


def patients(path: Path, count: int = ROWS) -> Path:
    """Four rows for each patient, one after the other in turns."""
    rows = [{"text": text, "patient_id": f"patient-{index % PERSONS:03d}"} for index, text in enumerate(texts(count))]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Guard]:
    home = new_home(tmp_path)
    add_corpus(home, patients(tmp_path / "rows.jsonl"), text_rows(3), Fields(subject="patient_id"))
    yield (made := Guard(home))
    made.close()


def test_the_declared_size_counts_persons_and_card_statement_ledger_and_review_state_the_unit(guard: Guard) -> None:
    card = card_of(guard.home)
    assert (card.declared_size, card.unit) == (PERSONS, "subject")
    statement = open_signed(guard.statement(), LedgerStatement, public_hex(guard.home.identity.signing_key))
    assert statement.unit == "subject" == guard.home.ledger.opening.unit == guard.status()["unit"]
    report = guard.review(template.render(sign(tiny_plan(BUNDLE), KEY)))
    assert report.unit == "subject" and report.sample_rate == 16 / PERSONS
    assert "as it would be if all records of one person had not been in the corpus" in report.sentence
    assert any("the records of about 40 persons" in words and "one record, drawn anew" in words for words in report.words)
    assert "a person with several records" not in report.sentence


def test_nothing_of_a_subjects_identifier_is_kept_or_told(guard: Guard) -> None:
    folder = guard.home.folder
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert b"patient-0" not in path.read_bytes(), path
    told = json.dumps([guard.status(), guard.ledger(), card_of(guard.home).model_dump(mode="json")])
    assert "patient" not in told


def test_rows_keep_their_grouping_in_the_order_of_first_appearance(guard: Guard, tmp_path: Path) -> None:
    with StoredRows(rows_file(guard.home)) as rows:
        assert [(row.text, row.subject) for row in rows] == [(text, index % PERSONS) for index, text in enumerate(texts(ROWS))]


@pytest.mark.parametrize(
    ("unit", "field", "told"),
    [("subject", None, "with --subject-field"), ("record", "patient_id", "leave --subject-field out")],
)
def test_the_subject_field_goes_with_the_budgets_unit(tmp_path: Path, unit: str, field: str | None, told: str) -> None:
    with new_home(tmp_path, unit) as home, pytest.raises(CorpusError, match=told):
        add_corpus(home, patients(tmp_path / "rows.jsonl"), [], Fields(subject=field))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", '{"text": "x", "who": "Ada"}\n{"text": "y"}\n', "line 2: no subject"),
        ("a.jsonl", '{"text": "x", "who": " "}\n', "line 1: no subject"),
        ("a.jsonl", '{"text": "x", "who": true}\n', "line 1: no subject"),
        ("a.jsonl", '{"text": "x", "who": 1.5}\n', "line 1: no subject"),
        ("a.csv", "text,name\nx,Ada\n", "no column 'who'.*--subject-field"),
        ("a.csv", "text,who\nx,\n", "line 2: no subject"),
        ("a.txt", "x\n", "line 1: no subject"),
    ],
)
def test_a_row_without_a_subject_is_named_and_not_quoted(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with new_home(tmp_path) as home, pytest.raises(CorpusError, match=told) as caught:
        add_corpus(home, tmp_path / name, [], Fields(subject="who"))
    assert "Ada" not in str(caught.value)


def test_a_number_and_its_text_are_one_subject(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "who": 7}\n{"text": "y", "who": "7"}\n{"text": "z", "who": "8"}\n')
    with new_home(tmp_path) as home:
        assert add_corpus(home, tmp_path / "a.jsonl", [], Fields(subject="who")).declared_size == 2


def test_an_order_trains_on_persons_at_their_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way in real worker processes; the ledger pays the rate of persons, not of rows."""
    jobs: list[Job] = []
    from fl_privacy.guard import worker

    real = worker.run

    def run(job: Job, *told: Any) -> None:
        jobs.append(job)
        real(job, *told)

    monkeypatch.setattr(worker, "run", run)
    home = new_home(tmp_path)
    add_corpus(home, patients(tmp_path / "rows.jsonl"), text_rows(3), Fields(subject="patient_id"))
    guards = {"bank": Guard(home), **{owner: make_guard(tmp_path, owner) for owner in ("clinic", "school")}}
    enrol_all({owner: guard.enrolment for owner, guard in guards.items()})
    plan, bank = tiny_plan(BUNDLE), guards["bank"]
    bank.approve(template.render(sign(plan, KEY)))
    upload(bank, BUNDLE.weights)
    upload(bank, BUNDLE.vocabulary)
    order = order_for(plan, KEY, home.registry, PERSONS, home.secret_key("bfv"))
    bank.rounds.place(order)
    assert finished(bank, RoundOrder.parse(order.body).digest())["state"] == "sealed"
    assert [(job.unit, job.declared_size) for job in jobs] == [("subject", PERSONS)]
    (spend,) = bank.home.ledger.spends
    assert spend.sample_rate == plan.batch_size / PERSONS
    for guard in guards.values():
        guard.close()
