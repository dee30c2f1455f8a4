"""The main job, told step by step: three owners, one scientist, one federated training run with differential privacy.

Run by `make demo`. Everything is real: guards and Syft datasites as processes, HTTP between them, DP-SGD, encrypted sums,
ledgers. Only this script, which plays all parties at once, may also train the reference runs that nobody could run in earnest.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from generate import write_rows
from reference_runs import reference_runs
from rich.rule import Rule

from fl_privacy import display
from fl_privacy.display import LiveRounds, console
from fl_privacy.encryption.registry import build_registry
from fl_privacy.errors import FlPrivacyError
from fl_privacy.guard.corpus import add_corpus
from fl_privacy.guard.home import GuardHome
from fl_privacy.learning.models import ModelBundle
from fl_privacy.learning.owner_scores import OwnerScores
from fl_privacy.owner import Owner
from fl_privacy.owner_files import export_ledger
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.audit import AuditResult, audit_export
from fl_privacy.row_files import read_rows
from fl_privacy.scientist.by_owner import as_json, measure_by_owner, mock_rows_by_owner
from fl_privacy.scientist.federation import Federation, Login
from fl_privacy.scientist.files import read_plan
from fl_privacy.scientist.history import History

DOMAINS = Path(__file__).parent
NAMES = ("hospital", "school", "service_desk")
ROWS = 16_000
SEED = 7
EMAIL = "scientist@university.example.org"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="runs/demo", show_default=True, help="Replaced if it exists.")
@click.option("--rows", default=ROWS, show_default=True, help="Private rows per owner.")
def main(out: Path, rows: int) -> None:
    """Run the main job end to end and leave model, history, picture, ledgers and summary.json in OUT."""
    os.environ["OMP_NUM_THREADS"] = "1"  # three owners share this machine; each trains on one core
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a stopped demo stops its owners
    started = time.perf_counter()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        step("1. Three owners start: each a guard (strong room) and a datasite (Syft, front desk)")
        owners = start_owners(out / "owners", rows, stack)
        step("2. The owners enrol: identity keys, compared out of band; a shared encryption key, sealed for each owner")
        federation = enrol(owners, out, stack)
        step("3. The scientist looks at mock rows and submits a training plan")
        console.print(display.corpora(federation.corpora()))
        plan, bundle = read_plan(DOMAINS / "plan.toml")
        federation.submit(plan)
        step("4. Each owner reviews and decides")
        reason = deny_too_much(owners, federation, plan)
        approve(owners, plan)
        step(f"5. {plan.rounds} federated rounds under differential privacy, summed under encryption")
        clock = time.perf_counter()
        history = train(federation, plan, bundle, out)
        seconds = time.perf_counter() - clock
        cards = federation.corpora()
        audits = verify_ledgers(owners, federation, out)
    step("6. What it was worth: reference runs on the same rows (only a demo, which sees all corpora, can do them)")
    corpora = {name: list(read_rows(out / "corpora" / f"{name}.jsonl")) for name in NAMES}
    references = reference_runs(plan, bundle, corpora, mock_rows_by_owner(plan, cards))
    accuracy = references.accuracy | {"federated": history.rounds[-1].accuracy}
    measured = measure_by_owner(plan, bundle, cards, out)
    scores = {"base": measured["base"], "alone": references.alone, "federated": measured["federated"]}
    show_worth(plan, accuracy, scores)
    summary = summarise(history, accuracy, audits, reason, seconds)
    summary["by_owner"] = {name: as_json(found) for name, found in scores.items()}
    summary["seconds"]["total"] = total = time.perf_counter() - started
    (out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"ledgers verified: {summary['ledgers_verified']}; {total:.0f} s in all; everything is in {out}")


def start_owners(folder: Path, rows: int, stack: contextlib.ExitStack) -> dict[str, Owner]:
    """Set the owners up and start their processes, all at once."""
    owners = {name: prepare_owner(folder, name, rows) for name in NAMES}
    for owner in owners.values():
        stack.callback(owner.stop)
    with console.status("starting guards and datasites"), ThreadPoolExecutor() as pool:
        list(pool.map(Owner.start, owners.values()))
    for name, owner in owners.items():
        console.print(f"  {name}: datasite at {owner.datasite.url}, guard in {owner.guard_home}")
    return owners


def prepare_owner(folder: Path, name: str, rows: int) -> Owner:
    """Generate an owner's corpus and put it into its strong room."""
    corpus = folder.parent / "corpora" / f"{name}.jsonl"
    corpus.parent.mkdir(parents=True, exist_ok=True)
    write_rows(name, rows, SEED, corpus)
    owner = Owner.init(folder / name, DOMAINS / name / "domain.toml")
    with GuardHome(owner.guard_home) as home:
        add_corpus(home, corpus, list(read_rows(DOMAINS / name / "mock.jsonl")))
    return owner


def enrol(owners: dict[str, Owner], out: Path, stack: contextlib.ExitStack) -> Federation:
    """Owners exchange identity cards among themselves; the scientist carries signatures and sealed keys."""
    cards = [owner.card() for owner in owners.values()]
    console.print(display.fingerprints(build_registry(cards)))
    for owner in owners.values():
        owner.enrol(cards)
    logins = [Login(name, owner.datasite.url, EMAIL, owner.invite("scientist", EMAIL)) for name, owner in owners.items()]
    federation = stack.enter_context(Federation.login(out / "scientist", logins))
    relayed = federation.relay_keys()
    console.print(f"  the scientist carried {relayed.signatures} signatures of the registry and {relayed.keys} sealed keys,")
    console.print("  and could neither forge the ones nor read the others")
    return federation


def deny_too_much(owners: dict[str, Owner], federation: Federation, plan: TrainingPlan) -> str:
    """A second request, for far more epsilon than any budget holds, is denied; returns the reason the scientist reads."""
    greedy = TrainingPlan.create(
        **plan.model_dump() | {"name": f"{plan.name}-greedy", "target_epsilon": 4 * plan.target_epsilon}
    )
    federation.submit(greedy)
    reasons = {}
    for name, owner in owners.items():
        request = owner.all_requests()[-1]
        report = owner.review(request.number)
        try:
            owner.approve(request.number)
        except FlPrivacyError as refusal:
            console.print(f"  {name} cannot even approve it by mistake: {refusal}")
        owner.deny(request.number, f"too much: {report['objection']}")
        reasons[name] = federation.status(greedy)[name].reason
    console.print(f"  the scientist reads: [red]{reasons[NAMES[0]]}[/red]")
    return reasons[NAMES[0]]


def approve(owners: dict[str, Owner], plan: TrainingPlan) -> None:
    """Every owner reads the review of the main request and approves it."""
    for index, owner in enumerate(owners.values()):
        request = next(request for request in owner.all_requests() if request.status == "pending")
        report = owner.review(request.number)
        if index == 0:
            console.print(display.review(request.number, request.email, report))
        owner.approve(request.number)
        after = f"epsilon will reach {report['epsilon_after']:.2f} of {report['epsilon_budget']:.2f}"
        console.print(f"  {owner.name} approves {plan.name!r}: {after}")


def train(federation: Federation, plan: TrainingPlan, bundle: ModelBundle, out: Path) -> History:
    """All rounds, with live progress; validation text is the owners' mock rows, so it costs no privacy."""
    with LiveRounds(plan.rounds) as live:
        history = federation.run(plan, bundle, federation.mock_rows(plan), out, watcher=live)
    console.print(display.rounds(history.rounds, history.accuracy_before))
    console.print("  score: share of masked characters guessed right on the mock rows that the owners publish; no private row")
    return history


def verify_ledgers(owners: dict[str, Owner], federation: Federation, out: Path) -> dict[str, AuditResult]:
    """Export every ledger and verify it as an auditor would, against the statement that the scientist was given."""
    results = {}
    (out / "ledgers").mkdir()
    statements = federation.statements()
    for name, owner in owners.items():
        file = out / "ledgers" / f"{name}.jsonl"
        results[name] = audit_export(file, export_ledger(owner.home, file), statements[name])
        console.print(display.audit(results[name]))
    return results


def show_worth(plan: TrainingPlan, accuracy: dict[str, float], scores: dict[str, OwnerScores]) -> None:
    """How good the models are, over all mock rows, and on each owner's."""
    meaning = {
        "public_base": "the model before anyone trained",
        "local_only": f"reference run: each owner alone, epsilon {plan.target_epsilon:g}, mean of the three",
        "federated": f"this run: epsilon {plan.target_epsilon:g} per owner",
        "centralised": "reference run: all rows in one place, no privacy",
    }
    rows = [(kind, f"{accuracy[kind]:.2%}", text) for kind, text in meaning.items()]
    console.print(display.table("MLM top-1 on the owners' mock rows", ["model", "top-1", "how"], rows))
    console.print(display.by_owner(scores))


def summarise(
    history: History, accuracy: dict[str, float], audits: dict[str, AuditResult], reason: str, seconds: float
) -> dict[str, Any]:
    """The run in figures. Seconds are wall time; bytes are HTTP bodies, all owners together, mean over rounds."""
    records = history.rounds
    return {
        "accuracy": accuracy,
        "epsilon": {
            name: {
                "ledger": result.epsilon_ledger,
                "recomputed": result.epsilon_recomputed,
                "budget": result.budget,
                "delta": result.delta,
            }
            for name, result in audits.items()
        },
        "upload_bytes_per_parameter": max(record.ciphertext_bytes / record.parameters for record in records),
        "bytes_per_round": {
            "up": sum(record.bytes_up for record in records) / len(records),
            "down": sum(record.bytes_down for record in records) / len(records),
        },
        "seconds": {
            "train": sum(record.seconds_training for record in records),
            "crypto": sum(record.seconds_crypto for record in records),
            "transport": sum(record.seconds_transport for record in records),
            "federated": seconds,
        },
        "denied_request": {"reason": reason},
        "ledgers_verified": all(not result.findings for result in audits.values()),
    }


def step(text: str) -> None:
    """A heading."""
    console.print(Rule(text, align="left", style="dim"))


if __name__ == "__main__":
    main()
