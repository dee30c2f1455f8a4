"""The report of an audit: figures of both accountants, one self-contained page, and a command that ends with 1 on findings."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import fl_privacy
from fl_privacy.cli import app
from fl_privacy.encryption.keys import Identity
from fl_privacy.encryption.registry import RegistryRecord, build_registry
from fl_privacy.errors import LedgerError
from fl_privacy.messages import public_hex, sign
from fl_privacy.privacy.accounting import epsilon
from fl_privacy.privacy.ledger import Ledger
from fl_privacy.privacy.report import audit_exports
from fl_privacy.scientist.history import OwnerSpend, RoundRecord, SkippedRound
from tests.privacy.three_ledgers import DELTA, KEYS, OWNERS, PLAN, PUBLIC, ROUND, decision, digest, federation, order


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def report(world):
    return audit_exports(world.exports(), PUBLIC, world.history)


def test_every_reserve_is_counted_by_two_accountants(report):
    for owner in report.owners:
        assert [point.entry for point in owner.course] == [2, 5]
        for number, point in enumerate(owner.course, start=1):
            exact = epsilon([ROUND] * number, DELTA, "prv")
            assert point.epsilon_opacus == point.epsilon_signed == epsilon([ROUND] * number, DELTA, "rdp")
            assert point.epsilon_pld == pytest.approx(exact, rel=0.02)
        (plan,) = owner.plans
        assert (plan.name, plan.verdict, plan.trainings, plan.trainings_approved) == ("clinic-notes", "approved", 2, 3)
        assert plan.epsilon == owner.epsilon_pld == owner.scientists[digest("scientist")]


def test_the_page_is_one_file_without_scripts_or_addresses(report):
    page = report.to_html()
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "<script" not in page
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    for owner in report.owners:
        assert owner.key in page
        assert f"{owner.epsilon_pld:.4f}" in page


def test_the_page_and_the_json_say_the_same(report, tmp_path):
    report.write(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [owner["owner"] for owner in told["owners"]] == list(OWNERS)
    assert told["findings"] == []
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No findings" in page
    for sentence in (*report.verified, *report.not_verified):
        assert sentence.replace("'", "&#39;") in page


HOSTILE = {"name": "<script>alert(1)</script> $\\frac{ \x07\u202e", "expires": 2**37 - 1, "epsilon": 1e9}


def test_names_that_a_hostile_owner_chose_do_no_harm(tmp_path):
    ledger = Ledger.create(tmp_path / "ledger.sqlite", "clinic", KEYS["clinic"], 1e9, DELTA, "rdp")
    ledger.decide(**decision(**HOSTILE))
    ledger.reserve(order(0), PLAN, ROUND.model_copy(update={"noise_multiplier": 0.01, "sample_rate": 1.0}))
    ledger.export(file := tmp_path / "clinic.jsonl")
    result = CliRunner().invoke(app, ["audit", str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_period_budget_is_said_not_to_bound_the_total(tmp_path):
    world = federation(tmp_path, rounds=1, period_days=30)
    report = audit_exports(world.exports(), PUBLIC, world.history)
    page = report.to_html()
    assert page.count("Nothing bounds the total") == 3
    assert "per 30 days" in page
    assert sum("any bound on the total" in words for words in report.not_verified) == 3


def test_an_audit_of_nothing_usable_is_still_a_report():
    page = audit_exports([], PUBLIC).to_html()
    assert "no ledger could be verified" in page


@pytest.fixture(scope="module")
def files(world, tmp_path_factory):
    """Exports, registry and history as an auditor has them."""
    folder = tmp_path_factory.mktemp("auditor")
    for owner in OWNERS:
        (folder / f"{owner}.jsonl").write_text("\n".join(world.lines(owner)))
    cards = [Identity(KEYS[owner], X25519PrivateKey.generate()).card(owner) for owner in OWNERS]
    signatures = [sign(build_registry(cards), KEYS[owner]) for owner in OWNERS]
    record = RegistryRecord(registry=signatures[0], signatures=tuple(signatures[1:]))
    (folder / "owners.json").write_bytes(record.canonical())
    claims = {number: [claim for claim in world.history if claim.round == number] for number in (0, 1)}
    lines = [round_record(number, told).canonical().decode() for number, told in claims.items()]
    lines.insert(1, SkippedRound(round=9, failures=({"bank": "away"},)).canonical().decode())
    (folder / "history.jsonl").write_text("\n".join(lines))
    return folder


def round_record(number, claims):
    spends = {
        claim.owner: OwnerSpend(epsilon=claim.epsilon, budget=claim.budget, delta=claim.delta, ledger_head=claim.head)
        for claim in claims
    }
    zero = dict.fromkeys(
        ("accuracy", "perplexity", "update_norm", "seconds_training", "seconds_crypto", "seconds_transport"), 0.0
    ) | dict.fromkeys(("attempt", "parameters", "ciphertext_bytes", "bytes_up", "bytes_down"), 0)
    names = {"cohort": OWNERS, "openers": OWNERS[:2], "failure_log2": None}
    return RoundRecord(round=number, order=order(number), spends=spends, **zero, **names)


def run_audit(files, *arguments, out="out"):
    exports = [str(files / f"{owner}.jsonl") for owner in OWNERS]
    return CliRunner().invoke(app, ["audit", *exports, "--out", str(files / out), *arguments])


def trusted(files):
    return ["--registry", str(files / "owners.json"), "--key", PUBLIC["school"], "--history", str(files / "history.jsonl")]


def test_the_command_audits_honest_ledgers_and_ends_with_0(files):
    result = run_audit(files, *trusted(files))
    assert result.exit_code == 0, result.output
    assert "no findings" in result.output
    assert json.loads((files / "out" / "report.json").read_text())["findings"] == []


def test_the_command_ends_with_1_and_says_where(files):
    bank = files / "bank.jsonl"
    honest = bank.read_text()
    bank.write_text(honest.replace('\\"steps\\":20', '\\"steps\\":2'))
    result = run_audit(files, *trusted(files), out="bad")
    bank.write_text(honest)
    assert result.exit_code == 1
    assert "FOUND bank, entry 2: [chain]" in result.output
    assert "bank, entry 2" in (files / "bad" / "report.html").read_text()


@pytest.mark.parametrize("arguments", [["--key", "ab"], ["--registry", "owners.json"], ["--home", "x", "--key", "ab"]])
def test_the_command_asks_for_a_registry_and_a_key_together(files, arguments):
    result = run_audit(files, *arguments)
    assert result.exit_code == 2
    assert "--registry and --key" in result.output


def test_an_unreadable_history_or_export_is_one_clear_line(files, tmp_path):
    (tmp_path / "noise").write_bytes(b"\xff\xfe")
    for arguments in (["--history", str(tmp_path / "noise")], [str(tmp_path / "missing.jsonl")]):
        result = run_audit(files, *arguments)
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {LedgerError.__name__}: ")
        assert len(result.output.splitlines()) == 1


def test_an_owner_brings_its_ledger_back_by_command(tmp_path):
    home = tmp_path / "clinic"
    (home / "guard").mkdir(parents=True)
    Identity(KEYS["clinic"], X25519PrivateKey.generate()).save(home / "guard" / "keys")
    ledger = Ledger.create(home / "guard" / "ledger.sqlite", "clinic", KEYS["clinic"], 4.0, DELTA, "rdp")
    ledger.reserve(order(0), PLAN, ROUND)
    backup, head = tmp_path / "backup.jsonl", ledger.statement().head
    (home / "guard" / "ledger.head").write_text(head)  # as a guard does after every entry
    assert CliRunner().invoke(app, ["ledger", "export", str(backup), "--home", str(home)]).exit_code == 0
    ledger.close()
    ledger.path.unlink()
    command = ["ledger", "import", str(backup), "--home", str(home), "--head"]
    refused = CliRunner().invoke(app, [*command, digest("a later head")])
    assert refused.exit_code == 1
    assert "cut short at entry 2" in refused.output
    assert CliRunner().invoke(app, [*command, head]).output == "2 entries were added\n"
    spent = f"epsilon {epsilon([ROUND], DELTA, 'rdp'):.3f} of 4.000"
    assert spent in CliRunner().invoke(app, ["ledger", "show", "--home", str(home)]).output


def test_the_documented_lines_audit_and_report(files, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (lines,) = (code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "audit_ledgers" in code)
    (tmp_path / "trained").mkdir()
    for owner in OWNERS:
        shutil.copy(files / f"{owner}.jsonl", tmp_path / f"{owner}-ledger.jsonl")
    shutil.copy(files / "history.jsonl", tmp_path / "trained")
    shutil.copy(files / "owners.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"key": public_hex(KEYS[OWNERS[0]])}
    exec(lines, names)  # noqa: S102 - our own documentation
    assert isinstance(names["report"], fl_privacy.AuditReport)
    assert [owner.owner for owner in names["report"].owners] == list(OWNERS) and names["report"].findings == ()
    assert (tmp_path / "audit" / "report.html").exists()
