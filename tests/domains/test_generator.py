"""The demo's text and its public base model."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from domains import generate
from fl_privacy.learning.models import ModelBundle, build_model, load_bundle
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.parameters import from_bytes

DOMAINS = (*generate.OWNERS, "public")
BASE = generate.FOLDER / "public" / "base"
ROWS = 2000
MAX_LENGTH = 40  # the demo's plan; longer rows would be cut


@pytest.fixture(scope="module")
def base() -> ModelBundle:
    return load_bundle(BASE)


@pytest.fixture(scope="module", params=generate.OWNERS)
def owner(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_seed_gives_the_same_rows_and_another_seed_others(domain: str) -> None:
    first = generate.sentences(domain, 200, 3)
    assert generate.sentences(domain, 200, 3) == first
    assert len(set(first) & set(generate.sentences(domain, 200, 4))) < 20


def test_rows_do_not_depend_on_the_process(tmp_path: Path) -> None:
    script, out = generate.FOLDER / "generate.py", tmp_path / "rows.jsonl"
    # A fresh interpreter hashes strings with another seed, so an order taken from a set would differ.
    command = [sys.executable, str(script), "school", "--rows", "150", "--seed", "9", "--out", str(out)]
    subprocess.run(command, check=True)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows == [{"text": text} for text in generate.sentences("school", 150, 9)]


def test_the_generator_still_writes_the_rows_that_the_base_and_the_mock_were_made_from() -> None:
    text = "\n".join(row for domain in DOMAINS for row in generate.sentences(domain, 100, 1))
    assert len(text.splitlines()) == 400
    assert hashlib.sha256(text.encode()).hexdigest() == "6e87fa71529013b36a2446540013da9b0ff61a43aeadccb4199add42f1b869c4"


@pytest.mark.parametrize("domain", DOMAINS)
def test_rows_are_different_and_most_of_what_the_grammar_writes_is_new(domain: str) -> None:
    rows = generate.sentences(domain, ROWS, 5)
    assert len(set(rows)) == len(rows) == ROWS
    drawn = list(itertools.islice(generate.stream(domain, 5), ROWS))
    assert len(set(drawn)) > 0.85 * ROWS


def test_no_private_row_is_a_mock_row(owner: str) -> None:
    mock = {json.loads(line)["text"] for line in (generate.FOLDER / owner / "mock.jsonl").read_text("utf-8").splitlines()}
    assert len(mock) == generate.MOCK_ROWS
    assert mock == set(generate.sentences(owner, generate.MOCK_ROWS, generate.MOCK_SEED))
    assert not mock & set(generate.sentences(owner, 12_000, 1))


def test_the_mock_filter_is_needed(owner: str) -> None:
    mock = set(generate.sentences(owner, generate.MOCK_ROWS, generate.MOCK_SEED))
    assert mock & set(itertools.islice(generate.stream(owner, 1), 12_000))


def test_a_grammar_that_is_too_small_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "stream", lambda domain, seed: itertools.cycle(["甲", "乙"]))
    with pytest.raises(ValueError, match="only 2 different rows of the 3"):
        generate.sentences("public", 3, 1)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_slot_of_every_template_word_and_record_can_be_filled(domain: str) -> None:
    grammar = generate.read_grammar(domain)
    assert all(weight > 0 for weight in grammar.weights)
    words = [word for choices in grammar.words.values() for word in choices]
    fields = [word for table in grammar.tables.values() for record in table.values() for key in record for word in record[key]]
    for number, text in enumerate((*grammar.templates, *words, *fields)):
        for again in range(10):
            filled = generate.Sentence(grammar, generate.random.Random(f"{number}/{again}")).expand(text)
            assert filled and not re.search(r"[{}|\s_a-z@]", filled), (text, filled)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_records_of_a_table_have_the_same_fields_and_references_lead_somewhere(domain: str) -> None:
    grammar = generate.read_grammar(domain)
    for table, records in grammar.tables.items():
        assert len({frozenset(record) for record in records.values()}) == 1, table
        for name, record in records.items():
            for key in record.keys() & grammar.tables.keys():
                assert set(record[key]) <= grammar.tables[key].keys(), (table, name, key)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_word_list_and_table_is_used(domain: str) -> None:
    text = (generate.FOLDER / domain / "grammar.toml").read_text(encoding="utf-8")
    slots = set(re.findall(r"\{([a-z_]+)", text))
    fields = set(re.findall(r"\.([a-z_]+)", " ".join(re.findall(r"\{[^{}]+\}", text))))
    grammar = generate.read_grammar(domain)
    assert grammar.words.keys() <= slots
    assert {key for records in grammar.tables.values() for record in records.values() for key in record} <= fields


def test_one_sentence_keeps_to_one_record() -> None:
    grammar = generate.read_grammar("hospital")
    for seed in range(50):
        sentence = generate.Sentence(grammar, generate.random.Random(seed))
        disease, drug, dose = sentence.expand("{disease} {disease.drug.name} {disease.drug.dose}").split()
        known = [grammar.tables["drug"][name] for name in grammar.tables["disease"][disease]["drug"]]
        assert any(drug in record["name"] and dose in record["dose"] for record in known)
        assert sentence.expand("{disease@2}") != disease


def test_an_unknown_slot_is_an_error() -> None:
    sentence = generate.Sentence(generate.read_grammar("school"), generate.random.Random(0))
    with pytest.raises(ValueError, match="nowhere"):
        sentence.expand("{nowhere}")
    with pytest.raises(ValueError, match="no field 'nothing'"):
        sentence.expand("{season.nothing}")


def test_the_owners_share_no_template_with_the_public_text() -> None:
    def frames(domain: str) -> set[str]:
        # Fixed text of five or more characters: what a template would have in common with another.
        pieces = (re.split(r"\{[^{}]+\}|[，。：；！？“”、]", text) for text in generate.read_grammar(domain).templates)
        return {piece[start : start + 5] for part in pieces for piece in part for start in range(len(piece) - 4)}

    public = frames("public")
    assert public
    for name in generate.OWNERS:
        assert not frames(name) & public


def test_the_base_knows_the_characters(base: ModelBundle, owner: str) -> None:
    tokenizer = tokenizer_of(base.vocabulary)
    tokens = Counter(token for text in generate.sentences(owner, ROWS, 5) for token in tokenizer.encode(text))
    assert tokens[tokenizer.unk_token_id] < 0.003 * tokens.total()


def test_no_row_is_cut_by_the_demo_plan(base: ModelBundle, owner: str) -> None:
    tokenizer = tokenizer_of(base.vocabulary)
    assert max(len(tokenizer.encode(text)) for text in generate.sentences(owner, ROWS, 5)) <= MAX_LENGTH


def test_the_base_is_small_and_complete(base: ModelBundle) -> None:
    assert {path.name for path in BASE.iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}
    assert (BASE / "model.safetensors").stat().st_size < 3_000_000
    assert len(tokenizer_of(base.vocabulary)) == base.spec.config["vocab_size"]
    build_model(base.spec, base.vocabulary, from_bytes(base.weights))


def test_the_domain_files_state_owner_budget_and_policy(owner: str) -> None:
    domain = tomllib.loads((generate.FOLDER / owner / "domain.toml").read_text(encoding="utf-8"))
    assert domain["owner"] == owner and re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", owner)
    assert domain["title"] and domain["description"]
    assert domain["budget"] == {"epsilon": 8.5, "delta": 1e-5, "accountant": "prv"}
    assert domain["policy"] == {"minimal_cohort": 3}
