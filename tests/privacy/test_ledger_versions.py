"""Ledgers of version 1 open, are brought up to date at once or not at all, and keep every digest; exports bring them back."""

import sqlite3
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.errors import LedgerError, LedgerTampered
from fl_privacy.messages import Signed, public_hex
from fl_privacy.privacy.audit import audit_export
from fl_privacy.privacy.entry_file import VERSION
from fl_privacy.privacy.export_file import Export
from fl_privacy.privacy.ledger import Ledger
from fl_privacy.privacy.restore import restore
from tests.privacy.crashes import dies_at
from tests.privacy.three_ledgers import PLAN, ROUND, order

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OLD = Path(__file__).parent / "data" / "ledger-v1.jsonl"  # opening, reserve, commit, reserve, void, budget; by version 1
OLD_HEAD = "c80594ec6757c71ad9082ab5433af960ee32a9d89e06280e8be90b95b0602619"  # as version 1 stated it
OLD_SCHEMA = (
    "CREATE TABLE entries (seq INTEGER PRIMARY KEY, signed TEXT NOT NULL) STRICT",
    "CREATE TRIGGER entries_are_final BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'ledger entries are final'); END",
    "CREATE TRIGGER entries_stay BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'ledger entries stay'); END",
    "CREATE TRIGGER entries_follow BEFORE INSERT ON entries WHEN NEW.seq <> (SELECT coalesce(max(seq) + 1, 0) FROM entries)"
    " BEGIN SELECT RAISE(ABORT, 'ledger entries are numbered without gaps'); END",
)


def old_file(path):
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as database:
        for statement in OLD_SCHEMA:
            database.execute(statement)
        database.executemany("INSERT INTO entries VALUES (?, ?)", enumerate(OLD.read_text(encoding="utf-8").splitlines()))
    database.close()
    return path


def version(path):
    database = sqlite3.connect(path)
    (number,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    return number


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_a_file_of_version_1_opens_with_its_chain_unchanged_and_grows(path):
    ledger = Ledger.open(old_file(path), KEY, seen=OLD_HEAD)
    told = ledger.statement()
    assert (told.head, told.entries, told.epsilon_budget, told.unit) == (OLD_HEAD, 6, 5.0, "record")
    assert told.epsilon_spent == pytest.approx(1.5521201851311108)
    assert version(path) == VERSION == 2
    ledger.reserve(order(2), PLAN, ROUND)
    ledger.close()
    reopened = Ledger.open(path, KEY, seen=OLD_HEAD)
    assert reopened._file.lines()[:6] == OLD.read_text(encoding="utf-8").splitlines()


def test_an_export_of_version_1_is_still_verified(tmp_path):
    result = audit_export(OLD, public_hex(KEY), OLD_HEAD)
    assert (result.entries, result.head, result.findings) == (6, OLD_HEAD, ())


def test_an_old_entry_has_the_digest_that_it_was_signed_with(path):
    ledger = Ledger.open(old_file(path), KEY)
    opening = ledger.entries()[0]
    signed = Signed.parse(ledger._file.lines()[0])
    assert opening.digest() != signed.body_digest()  # the model has fields now that were not signed
    assert ledger.entries()[1].previous == signed.body_digest()


def test_killed_at_any_statement_of_the_upgrade_a_ledger_is_old_or_new_and_whole(path):
    seen = set()
    for statement in range(1, 40):
        old_file(path)
        killed = dies_at(statement, lambda: Ledger.open(path, KEY, seen=OLD_HEAD).close())
        seen.add(version(path))
        ledger = Ledger.open(path, KEY, seen=OLD_HEAD)
        assert ledger.statement().head == OLD_HEAD
        ledger.reserve(order(2), PLAN, ROUND)
        ledger.close()
        if not killed:
            break
    assert statement > 5, "the child was to die at every statement, then to finish"
    assert seen == {0, 2}


def test_a_file_of_a_later_version_is_left_alone(path):
    old_file(path)
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 3")
    database.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="newer fl_privacy"):
        Ledger.open(path, KEY)
    assert path.read_bytes() == before


@pytest.fixture
def ledger(path):
    ledger = Ledger.create(path, "clinic", KEY, 9.0, 1e-5, "rdp")
    for number in range(2):
        ledger.reserve(order(number), PLAN, ROUND)
    return ledger


def export_of(ledger, file):
    ledger.export(file)
    return Export.read(file)


def test_a_lost_ledger_comes_back_from_its_export(ledger, path, tmp_path):
    export, told = export_of(ledger, tmp_path / "backup.jsonl"), ledger.statement()
    ledger.close()
    path.unlink()
    assert restore(path, KEY, export, seen=told.head) == 3
    assert path.stat().st_mode & 0o777 == 0o600
    back = Ledger.open(path, KEY, seen=told)
    assert back.spent == told.epsilon_spent
    back.reserve(order(2), PLAN, ROUND)


def test_an_older_copy_is_brought_up_to_date(ledger, path, tmp_path):
    old = path.read_bytes()
    ledger.reserve(order(2), PLAN, ROUND)
    export, told = export_of(ledger, tmp_path / "backup.jsonl"), ledger.statement()
    ledger.close()
    path.write_bytes(old)
    assert restore(path, KEY, export) == 1
    assert restore(path, KEY, export) == 0
    Ledger.open(path, KEY, seen=told)


def test_a_shorter_export_is_refused(ledger, path, tmp_path):
    export = export_of(ledger, tmp_path / "backup.jsonl")
    ledger.reserve(order(2), PLAN, ROUND)
    before = path.read_bytes()
    with pytest.raises(LedgerTampered, match="entry 3 is missing in the export"):
        restore(path, KEY, export)
    assert path.read_bytes() == before
    with pytest.raises(LedgerTampered, match="cut short at entry 3"):
        restore(tmp_path / "elsewhere.sqlite", KEY, export, seen=ledger.statement().head)
    assert not (tmp_path / "elsewhere.sqlite").exists()


def test_a_forked_export_is_refused(ledger, path, tmp_path):
    another = Ledger.create(tmp_path / "another.sqlite", "clinic", KEY, 7.0, 1e-5, "rdp")
    with pytest.raises(LedgerTampered, match="entry 0 is another"):
        restore(path, KEY, export_of(another, tmp_path / "another.jsonl"))
    restore(tmp_path / "copy.sqlite", KEY, export_of(ledger, tmp_path / "backup.jsonl"))
    copy = Ledger.open(tmp_path / "copy.sqlite", KEY)
    copy.reserve(order(7), PLAN, ROUND)
    ledger.reserve(order(8), PLAN, ROUND)
    with pytest.raises(LedgerTampered, match="entry 3 is another"):
        restore(path, KEY, export_of(copy, tmp_path / "copy.jsonl"))


def test_an_edited_or_strange_export_brings_nothing_back(ledger, tmp_path):
    export_of(ledger, file := tmp_path / "backup.jsonl")
    file.write_text(file.read_text().replace('\\"steps\\":20', '\\"steps\\":10'))
    other = Ed25519PrivateKey.generate()
    for key, words in ((KEY, "entry 1 was edited"), (other, "entry 0 was edited, or signed by another key")):
        with pytest.raises(LedgerTampered, match=words):
            restore(tmp_path / "new.sqlite", key, Export.read(file))
    assert not (tmp_path / "new.sqlite").exists()


def test_killed_at_any_statement_of_an_import_all_or_nothing_is_there(ledger, tmp_path):
    export, told = export_of(ledger, tmp_path / "backup.jsonl"), ledger.statement()
    new = tmp_path / "new.sqlite"
    for statement in range(1, 60):
        new.unlink(missing_ok=True)
        killed = dies_at(statement, lambda: restore(new, KEY, export))
        if new.exists() and version(new):
            assert Ledger.open(new, KEY).statement() == told
        assert restore(new, KEY, export) in (0, 3)
        Ledger.open(new, KEY, seen=told).close()
        if not killed:
            break
    assert statement > 10, "the child was to die at every statement, then to finish"


def test_whoever_lacks_the_key_cannot_cut_an_export_short(ledger, tmp_path):
    export_of(ledger, file := tmp_path / "backup.jsonl")
    lines = file.read_text().splitlines()
    for kept in range(2, len(lines)):
        with pytest.raises(LedgerTampered, match=f"entry {kept - 1} is missing: the export was cut short"):
            Export.read(lines[:kept]).verify(public_hex(KEY))
    header = Signed.parse(lines[0])
    forged = header.model_copy(update={"body": header.body.replace('"entries":3', '"entries":2')})
    with pytest.raises(LedgerTampered, match="header"):
        Export.read([forged.canonical().decode(), *lines[1:3]]).verify(public_hex(KEY))


def test_a_header_of_another_owner_or_head_is_noticed(ledger, tmp_path):
    ours = export_of(ledger, tmp_path / "ours.jsonl")
    twin = Ledger.create(tmp_path / "twin.sqlite", "bank", KEY, 9.0, 1e-5, "rdp")
    twin.reserve(order(0), PLAN, ROUND)
    twin.reserve(order(1), PLAN, ROUND)
    theirs = export_of(twin, tmp_path / "theirs.jsonl")
    with pytest.raises(LedgerTampered, match="not the one that the header names"):
        Export(theirs.header, ours.lines).verify(public_hex(KEY))
