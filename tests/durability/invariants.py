"""What must hold of a guard's home after any trouble, found out from its files, its answers, and what others remember."""

from __future__ import annotations

import functools
import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from opacus.accountants import RDPAccountant

from fl_privacy.errors import AlreadyOpened, FlPrivacyError
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.orders import OrderFolder
from fl_privacy.messages import RevealRequest, Signed, UpdateReceipt
from fl_privacy.privacy.audit import pld_epsilon
from fl_privacy.privacy.entries import Spend
from fl_privacy.privacy.ledger import Ledger
from tests.durability.life import PAID, VICTIM, Life
from tests.guard.protocol import changed, sha256

NO_TOTAL = "ef" * 32


class Violation(Exception):
    """An invariant that does not hold."""


def must(holds: bool, what: str) -> None:
    """Raises: Violation."""
    if not holds:
        raise Violation(what)


def reserves(home: Path) -> dict[str, Spend]:
    """Every reserve in a ledger's file, by order; read without the product's code, as the file lies there."""
    with sqlite3.connect(home / "ledger.sqlite") as database:
        bodies = [
            json.loads(json.loads(line)["body"]) for (line,) in database.execute("SELECT signed FROM entries ORDER BY seq")
        ]
    events = [body["event"] for body in bodies]
    return {event["order"]: Spend(**event["spend"]) for event in events if event["kind"] == "reserve"}


@functools.cache
def two_counts(spends: tuple[tuple[float, float, int], ...], delta: float) -> tuple[float, float]:
    """Epsilon by Opacus's own accountant object, and by dp-accounting."""
    accountant = RDPAccountant()
    accountant.history = list(spends)
    kept = [Spend(noise_multiplier=noise, sample_rate=rate, steps=steps) for noise, rate, steps in spends]
    return (accountant.get_epsilon(delta) if spends else 0.0), pld_epsilon(kept, delta)


def check_at_rest(life: Life, epsilon_before: float) -> float:
    """The victim's ledger and files right after its guard came back; returns epsilon. Raises: Violation."""
    home = life.victim.home
    spent = check_ledger(life, epsilon_before)
    for fact in life.journal.all("receipt"):
        if fact["owner"] == VICTIM:
            receipt = UpdateReceipt.parse(Signed.model_validate_json(fact["answer"]).body)
            Ledger.open(home.folder / "ledger.sqlite", home.identity.signing_key, receipt.ledger_head).close()
    check_decisions(life)
    check_orders(life)
    check_files(life, finished=False)
    return spent


def check_ledger(life: Life, epsilon_before: float) -> float:
    """No spend is lost, none is counted lower than two accountants count it, and nothing ran unpaid."""
    home = life.victim.home
    paid, statement = reserves(home.folder), home.ledger.statement()
    spends = tuple((spend.noise_multiplier, spend.sample_rate, spend.steps) for spend in paid.values())
    opacus, pld = two_counts(spends, statement.delta)
    must(
        abs(statement.epsilon_spent - opacus) <= 1e-6 * max(opacus, 1),
        f"the ledger says {statement.epsilon_spent}, not {opacus}",
    )
    must(statement.epsilon_spent >= pld * (1 - 1e-9), f"the ledger says {statement.epsilon_spent}, at least {pld} was spent")
    must(statement.epsilon_spent >= epsilon_before, f"epsilon fell from {epsilon_before} to {statement.epsilon_spent}")
    unpaid = {fact["order"] for fact in life.journal.all("trained")} - set(paid)
    must(not unpaid, f"trained without a reserve: {unpaid}")
    return statement.epsilon_spent


def check_decisions(life: Life) -> None:
    """What the guard acts on is what its ledger says that the owner decided."""
    guard, plan = life.victim, life.plan.digest()
    recorded, kept = guard.home.ledger.decisions.get(plan), guard.approvals.of_plan(plan)
    told = life.journal.all("receipt")
    must(kept is not None or not told, "an approval that orders were placed under is gone")
    if kept is not None:
        must(recorded is not None and recorded.verdict == kept.verdict, "approval and ledger disagree")


def check_orders(life: Life) -> None:
    """Closed stays closed, for one sum; nothing gives its self-mask that is not closed by all; no sum is decrypted again."""
    guard = life.victim
    closed = {fact["order"] for fact in life.journal.all("survivors") if fact["owner"] == VICTIM}
    decrypted = [fact["order"] for fact in life.journal.all("decrypted")]
    must(len(decrypted) == len(set(decrypted)), f"a sum was decrypted twice: {decrypted}")
    for folder in folders(guard.home):
        must(folder.is_closed or folder.digest not in closed, f"order {folder.digest} is no longer closed")
        if folder.is_closed:
            refused(lambda f=folder: guard.closing.close(changed(f.closing, total=NO_TOTAL)), AlreadyOpened)
            alone = RevealRequest(**dict(folder.closing), survivors=(guard.closing.close(folder.closing),))
            refused(lambda r=alone: guard.closing.reveal(r))
            must(not folder.update.exists(), f"the update of closed order {folder.digest} is still there")
        else:
            signed = Signed.parse((folder.path / "order.json").read_bytes())
            refused(lambda s=signed: guard.closing.reveal(RevealRequest(order=s, receipts=(), total=NO_TOTAL, survivors=())))


def refused(ask: object, kind: type[FlPrivacyError] = FlPrivacyError) -> None:
    """The guard answers with a typed error. Raises: Violation when it does not."""
    try:
        ask()  # type: ignore[operator]
    except kind:
        return
    raise Violation(f"was answered, and not refused with {kind.__name__}")


def folders(home: GuardHome) -> Iterator[OrderFolder]:
    """The admitted orders of a guard."""
    yield from (OrderFolder(path) for path in (home.folder / "rounds").iterdir() if (path / "order.json").exists())


def check_files(life: Life, finished: bool) -> None:
    """Only the owner's user can read what is secret, blobs are whole, and nothing is left of what no order needs."""
    home = life.victim.home
    for path in home.folder.rglob("*"):
        is_secret = path.suffix in (".f32", ".key", ".partial", ".sqlite") or path.parent.name in ("keys", "corpus", "outbox")
        must(not path.is_file() or not is_secret or not path.stat().st_mode & 0o077, f"{path} can be read by others")
    partial = [path.name for place in ("rounds", "inbox", "outbox") for path in (home.folder / place).rglob("*.partial")]
    must(not partial, f"left behind: {partial}")
    blobs = [path for place in ("inbox", "outbox") for path in (home.folder / place).iterdir() if not path.suffix]
    torn = [path.name for path in blobs if sha256(path) != path.name]
    must(not torn, f"blobs whose bytes are not what their names say: {torn}")
    for folder in folders(home):
        must(not folder.self_mask.exists() or folder.is_closed or folder.is_sealed, f"a useless self-mask in {folder.digest}")
        must(not finished or not folder.update.exists(), f"a useless update in {folder.digest}")
    must(not list(Path(os.environ["TMPDIR"]).iterdir()), f"left in the folder for temporary files: {os.environ['TMPDIR']}")


def check_finished(life: Life, epsilon_before: float) -> float:
    """Both rounds are open, for no more than the plan pays; nobody was told two things; returns epsilon. Raises: Violation."""
    spent = check_ledger(life, epsilon_before)
    must(len(reserves(life.victim.home.folder)) <= PAID, "more trainings than the plan pays for")
    for what in ("receipt", "survivors", "reveal", "opened", "update"):
        answers: dict[tuple[str, str], set[str]] = defaultdict(set)
        for fact in life.journal.all(what):
            answers[fact["owner"], fact["order"]].add(fact["answer"])
        twice = [place for place, told in answers.items() if len(told) > 1]
        must(not twice, f"two different answers ({what}) to one order: {twice}")
    check_sums(life)
    check_decisions(life)
    check_orders(life)
    check_files(life, finished=True)
    return spent


def check_sums(life: Life) -> None:
    """No trained update is in two sums."""
    updates = {(fact["owner"], fact["order"]): fact["answer"] for fact in life.journal.all("update")}
    summed = [(fact["owner"], fact["order"]) for fact in life.journal.all("survivors")]
    for owner in life.guards:
        mine = [updates[place] for place in sorted(set(summed)) if place[0] == owner]
        must(len(mine) == len(set(mine)), f"an update of {owner} is in two sums")
