"""An auditor with the owner's public key alone finds the same epsilon by another accountant."""

import hashlib
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.errors import LedgerError, LedgerTampered
from fl_privacy.messages import public_hex, sign
from fl_privacy.privacy.accounting import Spend
from fl_privacy.privacy.audit import audit_export, recompute_epsilon, verify_export
from fl_privacy.privacy.entries import FIRST, LedgerEntry, Opening, Reserve
from fl_privacy.privacy.ledger import Ledger

DELTA = 1e-5
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PLAN = hashlib.sha256(b"plan").hexdigest()


def order(number: int) -> str:
    return hashlib.sha256(f"order {number}".encode()).hexdigest()


def exported(folder, spends, accountant="prv", budget=20.0):
    ledger = Ledger.create(folder / "ledger.sqlite", "clinic", KEY, budget, DELTA, accountant)
    for number, spend in enumerate(spends):
        ledger.reserve(order(number), PLAN, spend)
    ledger.export(folder / "ledger.jsonl")
    return ledger, folder / "ledger.jsonl"


def test_another_accountant_finds_the_same_epsilon(tmp_path):
    spends = [Spend(noise_multiplier=1.0, sample_rate=0.0256, steps=20)] * 5
    spends += [Spend(noise_multiplier=1.5, sample_rate=0.03, steps=100), Spend(noise_multiplier=2.0, sample_rate=0.1, steps=50)]
    ledger, path = exported(tmp_path, spends)
    ledger.void(order(6), "the worker died")  # still counts
    ledger.export(path)
    result = audit_export(path, public_hex(KEY), ledger.statement())
    assert result.epsilon_ledger == ledger.spent
    assert result.epsilon_recomputed == pytest.approx(result.epsilon_ledger, rel=0.02)
    assert result.epsilon_recomputed <= result.epsilon_ledger
    assert (result.owner, result.budget, result.delta, result.unit) == ("clinic", 20.0, DELTA, "record")
    assert (result.entries, result.head, result.findings) == (9, ledger.statement().head, ())


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "pld"),
    # Google's dp-accounting 0.6.0, published with the accounting tests
    [(0.01, 1.0, 1000, 1.829), (0.0256, 1.0, 150, 2.118), (1.0, 10.0, 50, 2.943), (0.05, 1.0, 1000, 10.99)],
)
def test_recomputed_values(rate, noise, steps, pld):
    spend = Spend(noise_multiplier=noise, sample_rate=rate, steps=steps)
    assert recompute_epsilon(chain([spend], claimed=0.0), DELTA) == pytest.approx(pld, rel=0.001)


def test_a_hopeless_history_costs_the_auditor_little_and_reads_as_hopeless():
    spend = Spend(noise_multiplier=0.1, sample_rate=0.5, steps=1000)
    assert recompute_epsilon(chain([spend], claimed=0.0), DELTA) > 1000


def test_an_empty_ledger_costs_nothing(tmp_path):
    ledger, path = exported(tmp_path, [])
    result = audit_export(path, public_hex(KEY))
    assert (result.epsilon_ledger, result.epsilon_recomputed, result.entries) == (0.0, 0.0, 1)


def chain(spends, claimed):
    """Entries of an owner who claims any epsilon it likes."""
    opening = Opening(owner="clinic", epsilon=2.0, delta=DELTA, accountant="prv")
    entries = [LedgerEntry(seq=0, previous=FIRST, time=0, event=opening)]
    for number, spend in enumerate(spends):
        event = Reserve(order=order(number), plan=PLAN, spend=spend, epsilon=claimed)
        entries.append(LedgerEntry(seq=number + 1, previous=entries[-1].digest(), time=0, event=event))
    return entries


@pytest.mark.parametrize(("claimed", "finding"), [(1.0, "its entries cost 2.1"), (2.5, "over the budget 2.0")])
def test_an_owner_who_signs_a_lie_is_found_out(tmp_path, claimed, finding):
    entries = chain([Spend(noise_multiplier=1.0, sample_rate=0.0256, steps=150)], claimed)
    path = tmp_path / "lie.jsonl"
    path.write_text("\n".join(sign(entry, KEY).canonical().decode() for entry in entries))
    (found,) = audit_export(path, public_hex(KEY)).findings
    assert finding in found


def test_a_statement_below_the_ledger_is_found_out(tmp_path):
    ledger, path = exported(tmp_path, [Spend(noise_multiplier=1.0, sample_rate=0.02, steps=20)], "rdp")
    lie = ledger.statement().model_copy(update={"epsilon_spent": 0.1})
    (found,) = audit_export(path, public_hex(KEY), lie).findings
    assert "stated epsilon 0.1" in found


def test_lines_and_file_are_the_same_to_the_auditor(tmp_path):
    _, path = exported(tmp_path, [Spend(noise_multiplier=1.0, sample_rate=0.02, steps=20)], "rdp")
    assert verify_export(path.read_text().splitlines(), public_hex(KEY)).head == verify_export(path, public_hex(KEY)).head


def test_a_missing_or_binary_file_is_a_typed_error(tmp_path):
    with pytest.raises(LedgerError):
        verify_export(tmp_path / "none.jsonl", public_hex(KEY))
    (tmp_path / "noise.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LedgerError):
        verify_export(tmp_path / "noise.jsonl", public_hex(KEY))
    with pytest.raises(LedgerTampered, match="entry 0"):
        verify_export([], public_hex(KEY))


def test_the_audit_shares_no_accountant_with_the_ledger():
    owners = ("opacus", "fl_privacy.privacy.accounting")
    code = f"import sys, fl_privacy.privacy.audit; print(*(name in sys.modules for name in {owners}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
