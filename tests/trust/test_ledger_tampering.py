"""Adversary: whoever can write the ledger's file or its export, without the owner's key; and an owner who rewrites its past.

Every change is found and the first entry at fault is named. What cannot be found from the chain alone - entries cut off the
end, a whole new past signed by the owner - is found with any head that was kept from earlier.
"""

import hashlib
import json
import sqlite3

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_privacy.errors import LedgerTampered
from fl_privacy.messages import Signed, public_hex, sign
from fl_privacy.privacy.accounting import Spend
from fl_privacy.privacy.audit import verify_export
from fl_privacy.privacy.entries import Commit, LedgerEntry, Opening, Reserve, Void
from fl_privacy.privacy.ledger import Ledger

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
OWNER = public_hex(KEY)
PLAN = hashlib.sha256(b"plan").hexdigest()
ROUND = Spend(noise_multiplier=1.0, sample_rate=0.02, steps=20)


def order(number: int) -> str:
    return hashlib.sha256(f"order {number}".encode()).hexdigest()


def fill(path):
    """Entries: 0 open, then reserve and commit of orders 0, 1, 2 as 1..6."""
    ledger = Ledger.create(path, "clinic", KEY, 10.0, 1e-5, "rdp")
    for number in range(3):
        ledger.reserve(order(number), PLAN, ROUND)
        ledger.commit(order(number))
    ledger.export(path.with_suffix(".jsonl"))
    return ledger


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("ledger") / "ledger.sqlite")


@pytest.fixture(scope="module")
def lines(ledger):
    return ledger.path.with_suffix(".jsonl").read_text().splitlines()[1:]  # without the header, as in the first format


def entry_of(line: str) -> LedgerEntry:
    return LedgerEntry.parse(Signed.parse(line).body)


def resign(entry: LedgerEntry, key=KEY) -> str:
    return sign(entry, key).canonical().decode()


def refused(lines, words, seen=None):
    with pytest.raises(LedgerTampered) as refusal:
        verify_export(lines, OWNER, seen)
    assert words in str(refusal.value)


def test_an_untouched_export_is_accepted(ledger, lines):
    verified = verify_export(lines, OWNER, ledger.statement())
    assert (len(verified.entries), verified.head, verified.epsilon) == (7, ledger.statement().head, ledger.spent)
    assert set(verified.orders.values()) == {"committed"}


def test_a_cheaper_spend_written_over_the_real_one_is_located(lines):
    signed = json.loads(lines[3])
    assert '"steps":20' in signed["body"]
    signed["body"] = signed["body"].replace('"steps":20', '"steps":2')
    refused([*lines[:3], json.dumps(signed), *lines[4:]], "entry 3 was edited")


@pytest.mark.parametrize("number", range(7))
def test_a_removed_entry_is_located(lines, number):
    if number == 6:  # the last one leaves no trace in the chain, see truncation
        verify_export(lines[:6], OWNER)
    else:
        refused(lines[:number] + lines[number + 1 :], f"entry {number} is missing")


@pytest.mark.parametrize(("left", "right"), [(0, 1), (1, 3), (2, 5), (5, 6)])
def test_swapped_entries_are_located(lines, left, right):
    swapped = list(lines)
    swapped[left], swapped[right] = swapped[right], swapped[left]
    refused(swapped, f"entry {left} was moved")


def test_a_repeated_entry_is_located(lines):
    refused([*lines[:4], lines[3], *lines[4:]], "entry 3 is repeated")


@pytest.mark.parametrize("kept", range(1, 7))
def test_truncation_is_found_against_an_earlier_statement_or_head(ledger, lines, kept):
    verify_export(lines[:kept], OWNER)  # by itself a shorter ledger is a valid one
    refused(lines[:kept], f"entry {kept} is missing", ledger.statement())
    refused(lines[:kept], f"cut short at entry {kept} or forked", ledger.statement().head)


def test_an_older_statement_still_holds_for_a_ledger_that_grew(tmp_path):
    ledger = fill(tmp_path / "ledger.sqlite")
    before = ledger.statement()
    ledger.reserve(order(3), PLAN, ROUND)
    ledger.export(tmp_path / "ledger.jsonl")
    verify_export(tmp_path / "ledger.jsonl", OWNER, before)
    verify_export(tmp_path / "ledger.jsonl", OWNER, before.head)


def test_an_entry_signed_by_another_key_is_located(lines):
    refused([*lines[:2], resign(entry_of(lines[2]), OTHER), *lines[3:]], "entry 2 was edited, or signed by another key")


def test_a_ledger_of_another_owner_is_refused(lines):
    refused([resign(entry_of(line), OTHER) for line in lines], "entry 0")


def test_another_signed_message_is_not_an_entry(ledger, lines):
    refused([*lines, sign(ledger.statement(), KEY).canonical().decode()], "entry 7")


def test_an_owner_who_forks_its_ledger_is_located(ledger, lines):
    entry = entry_of(lines[3])
    cheap = entry.event.model_copy(update={"spend": ROUND.model_copy(update={"steps": 1})})
    forged = resign(entry.model_copy(update={"event": cheap}))
    refused([*lines[:3], forged, *lines[4:]], "entry 4 forks the ledger")
    refused([*lines[:4], forged, *lines[4:]], "entry 3 is forked")
    refused([*lines[:3], forged], "entry 4 is missing", ledger.statement())  # 4 entries where 7 were stated
    refused([*lines[:3], forged], "or forked", entry.digest())


def test_an_entry_has_one_form_only(lines):
    signed = Signed.parse(lines[6])
    tag = b"fl_privacy/v1/LedgerEntry\0"
    spaced = signed.body.replace(",", ", ")
    resigned = signed.model_copy(update={"body": spaced, "signature": KEY.sign(tag + spaced.encode()).hex()})
    refused([*lines[:6], resigned.canonical().decode()], "entry 6 is not in canonical form")


def test_a_whole_new_past_is_found_by_anyone_who_kept_a_head(ledger, lines):
    rewritten, previous = [], "0" * 64
    for line in lines:
        entry = entry_of(line)
        event = entry.event
        if isinstance(event, Reserve):
            event = event.model_copy(update={"spend": ROUND.model_copy(update={"steps": 1}), "epsilon": 0.1})
        entry = entry.model_copy(update={"event": event, "previous": previous})
        previous = entry.digest()
        rewritten.append(resign(entry))
    verify_export(rewritten, OWNER)  # well formed: only memory can contradict it
    refused(rewritten, "entry 6 is not the one that was stated", ledger.statement())
    refused(rewritten, "or forked", ledger.statement().head)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Commit(order=order(9)), "not reserved"),
        (Void(order=order(9), reason="x"), "not reserved"),
        (Commit(order=order(0)), "which is committed"),
        (Void(order=order(0), reason="take it back"), "which is committed"),
        (Reserve(order=order(0), plan=PLAN, spend=ROUND, epsilon=1.0), "reserved before"),
        (Opening(owner="clinic", epsilon=99.0, delta=1e-5, accountant="rdp"), "only the first"),
    ],
)
def test_a_signed_entry_that_makes_no_sense_is_located(lines, event, words):
    entry = LedgerEntry(seq=7, previous=entry_of(lines[6]).digest(), time=0, event=event)
    refused([*lines, resign(entry)], "entry 7")
    refused([*lines, resign(entry)], words)


def test_a_ledger_must_open_with_an_opening(lines):
    entry = LedgerEntry(seq=0, previous="0" * 64, time=0, event=entry_of(lines[1]).event)
    refused([resign(entry)], "entry 0")


def test_no_byte_of_an_export_can_change_unnoticed(ledger):
    text = ledger.path.with_suffix(".jsonl").read_text().rstrip("\n")

    @settings(max_examples=60, deadline=None)
    @given(position=st.integers(0, len(text) - 1), replacement=st.characters(codec="ascii", exclude_categories=["C"]))
    def change(position, replacement):
        changed = text[:position] + replacement + text[position + 1 :]
        if changed != text:
            with pytest.raises(LedgerTampered, match=r"entry \d+|header"):
                verify_export(changed.split("\n"), OWNER)

    change()


def tamper(path, statement, *values):
    """Write to the file as someone would who knows SQLite: the triggers are no obstacle."""
    with sqlite3.connect(path) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute(statement, values)
    database.close()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE entries SET signed = replace(signed, ':20', ':2') WHERE seq = 3", "entry 3 was edited"),
        ("DELETE FROM entries WHERE seq = 3", "entry 3 is missing"),
        ("UPDATE entries SET seq = 60 - seq WHERE seq IN (3, 4)", "entry 3 was moved"),
        ("DELETE FROM entries", "entry 0 is missing"),
    ],
)
def test_a_ledger_file_that_was_changed_does_not_open(tmp_path, statement, words):
    fill(tmp_path / "ledger.sqlite").close()
    tamper(tmp_path / "ledger.sqlite", statement)
    with pytest.raises(LedgerTampered) as refusal:
        Ledger.open(tmp_path / "ledger.sqlite", KEY)
    assert words in str(refusal.value)


def test_an_older_copy_of_the_file_does_not_open_against_a_later_head(tmp_path):
    path = tmp_path / "ledger.sqlite"
    ledger = fill(path)
    copy = path.read_bytes()
    ledger.reserve(order(3), PLAN, ROUND)
    statement = ledger.statement()
    ledger.close()
    Ledger.open(path, KEY, seen=statement).close()
    path.write_bytes(copy)
    for seen in (statement, statement.head):
        with pytest.raises(LedgerTampered, match="entry 7"):
            Ledger.open(path, KEY, seen=seen)


def test_a_ledger_does_not_open_with_another_key(tmp_path):
    fill(tmp_path / "ledger.sqlite").close()
    with pytest.raises(LedgerTampered, match="entry 0"):
        Ledger.open(tmp_path / "ledger.sqlite", OTHER)


def test_no_signing_key_in_what_is_shown_or_exported(ledger, lines):
    secret = KEY.private_bytes_raw()
    shown = "".join(lines) + repr(ledger) + ledger.path.read_bytes().hex() + ledger.path.read_text("latin-1")
    assert secret.hex() not in shown
    assert secret.decode("latin-1") not in shown
