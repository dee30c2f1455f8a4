"""Write a domain's sentences from its grammar: ``python domains/generate.py hospital --rows 9000 --seed 7 --out rows.jsonl``.

A grammar (``domains/<name>/grammar.toml``) holds templates with slots, word lists, and tables of things that belong together
(a disease with its symptoms and drugs). The same domain, rows and seed give the same sentences on every machine.

Slots: ``{word}`` draws from a word list, ``{a|b|c}`` from the words between the bars, ``{3-9}`` a whole number. ``{disease}``
names a record of a table and ``{disease.drug.dose}`` follows its fields; one sentence keeps to one record, so that its parts
agree, and ``{disease@2}`` takes a second. No draw repeats within a sentence while another is left.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OWNERS = ("hospital", "school", "service_desk")
MOCK_SEED = 0  # the seed of mock.jsonl; every other seed leaves the mock rows out
MOCK_ROWS = 300

Record = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Grammar:
    """Templates with weights, word lists by name, and tables: record fields by table and record name."""

    templates: tuple[str, ...]
    weights: tuple[float, ...]
    words: dict[str, tuple[str, ...]]
    tables: dict[str, dict[str, Record]]


def read_grammar(domain: str) -> Grammar:
    """Read ``domains/<domain>/grammar.toml``; lists are written as words between spaces."""
    raw = tomllib.loads((FOLDER / domain / "grammar.toml").read_text(encoding="utf-8"))
    weighted = [pair for group in raw["groups"] for pair in _shares(group["templates"], group["weight"], raw["skew"])]
    return Grammar(
        templates=tuple(text for text, _ in weighted),
        weights=tuple(weight for _, weight in weighted),
        words={name: tuple(text.split()) for name, text in raw["words"].items()},
        tables={
            table: {name: {key: tuple(text.split()) for key, text in fields.items()} for name, fields in records.items()}
            for table, records in raw.get("tables", {}).items()
        },
    )


def _shares(templates: list[str], weight: float, skew: float) -> list[tuple[str, float]]:
    """Share a group's weight over its templates as 1 / rank**skew; adding a group leaves the shares within others alone."""
    total = sum(1 / rank**skew for rank in range(1, len(templates) + 1))
    return [(text, weight / rank**skew / total) for rank, text in enumerate(templates, 1)]


@dataclass
class Sentence:
    """One sentence in the making: the records it has settled on and the words it has used."""

    grammar: Grammar
    rng: random.Random
    records: dict[str, str] = field(default_factory=dict)
    used: dict[str, set[str]] = field(default_factory=dict)

    def expand(self, template: str) -> str:
        """Fill every slot, from left to right; what a slot draws may hold slots itself (slots do not nest)."""
        return re.sub(r"\{([^{}]+)\}", lambda slot: self.expand(self._fill(slot[1])), template)

    def _fill(self, slot: str) -> str:
        if "|" in slot:
            return self.rng.choice(slot.split("|"))
        if span := re.fullmatch(r"(\d+)-(\d+)", slot):
            return str(self.rng.randint(int(span[1]), int(span[2])))
        if slot in self.grammar.words:
            return self._draw(slot, self.grammar.words[slot])
        return self._follow(slot)

    def _follow(self, slot: str) -> str:
        """Walk ``table.field.field``; a field with a table's name leads to a record of that table, kept for the sentence."""
        first, *fields = slot.split(".")
        table = first.partition("@")[0]
        if table not in self.grammar.tables:
            raise ValueError(f"{{{slot}}}: no word list or table has this name")
        name = self._settle(first, tuple(self.grammar.tables[table]))
        path = first
        for key in fields:
            choices = self.grammar.tables[table][name].get(key)
            if choices is None:
                raise ValueError(f"{{{slot}}}: {table} {name!r} has no field {key!r}")
            path, table = f"{path}.{key}", key
            name = self._settle(path, choices) if key in self.grammar.tables else self._draw(path, choices)
        return name

    def _settle(self, path: str, choices: tuple[str, ...]) -> str:
        if path not in self.records:
            self.records[path] = self._draw(path.partition("@")[0], choices)
        return self.records[path]

    def _draw(self, name: str, choices: tuple[str, ...]) -> str:
        used = self.used.setdefault(name, set())
        word = self.rng.choice([choice for choice in choices if choice not in used] or choices)
        used.add(word)
        return word


def stream(domain: str, seed: int) -> Iterator[str]:
    """Sentences of a domain without end, repeats included."""
    grammar = read_grammar(domain)
    rng = random.Random(f"{domain}/{seed}")
    while True:
        (template,) = rng.choices(grammar.templates, grammar.weights)
        yield Sentence(grammar, rng).expand(template)


def sentences(domain: str, rows: int, seed: int) -> list[str]:
    """``rows`` different sentences; a seed other than ``MOCK_SEED`` never gives a mock row.

    Raises: ValueError when the grammar is too small for so many rows, or a slot of it leads nowhere.
    """
    mock = set() if seed == MOCK_SEED else set(sentences(domain, MOCK_ROWS, MOCK_SEED)) if domain in OWNERS else set()
    found: dict[str, None] = {}
    for tries, text in enumerate(stream(domain, seed)):
        if len(found) == rows:
            break
        if tries > 20 * rows + 1000:
            raise ValueError(f"{domain}: the grammar gives only {len(found)} different rows of the {rows} asked for")
        if text not in mock:
            found.setdefault(text)
    return list(found)


def write_rows(domain: str, rows: int, seed: int, path: Path) -> None:
    """Write ``sentences(domain, rows, seed)`` as JSON lines ``{"text": ...}``. Raises: ValueError as ``sentences``."""
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in sentences(domain, rows, seed))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("domain", choices=[*OWNERS, "public"])
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True, help=f"{MOCK_SEED} is the seed of mock.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    write_rows(asked.domain, asked.rows, asked.seed, asked.out)


if __name__ == "__main__":
    main()
