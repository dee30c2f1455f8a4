"""The command line: commands only; what they do is in the package."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fl_privacy.errors import FlPrivacyError

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
owner_app = typer.Typer(help="Run a data owner: its guard (strong room) and its datasite (front desk).", no_args_is_help=True)
corpus_app = typer.Typer(help="The owner's private text.", no_args_is_help=True)
requests_app = typer.Typer(help="What scientists ask of this owner: read, approve, deny.", no_args_is_help=True)
ledger_app = typer.Typer(help="The owner's privacy ledger: what was spent, and proof of it.", no_args_is_help=True)
app.add_typer(owner_app, name="owner")
app.add_typer(corpus_app, name="corpus")
app.add_typer(requests_app, name="requests")
app.add_typer(ledger_app, name="ledger")

Home = Annotated[Path, typer.Option("--home", "-H", envvar="FL_PRIVACY_HOME", help="The owner's folder.")]
FederationFile = Annotated[Path, typer.Option("--federation", "-f", help="Owners' addresses and accounts, as TOML.")]
HERE = Path()


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command that prints our own errors in one line and exits with 1."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except FlPrivacyError as error:
                typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
                raise typer.Exit(1) from None

        group.command(name)(run)
        return run

    return register


@command(owner_app, "init")
def owner_init(
    home: Home = HERE,
    domain: Annotated[Path, typer.Option(help="domain.toml: name, title, budget and policy.")] = Path("domain.toml"),
) -> None:
    """Make a new owner's folder: fresh keys, an empty ledger with the budget of domain.toml."""
    from fl_privacy.display import console
    from fl_privacy.owner import Owner

    made = Owner.init(home, domain)
    console.print(f"{made.name} is ready in {made.home}. Next: fl-privacy corpus add FILE --home {home}")


@command(owner_app, "serve")
def owner_serve(
    home: Home = HERE, port: Annotated[int, typer.Option(help="Port of the datasite; a free one by default.")] = 0
) -> None:
    """Run guard and datasite on 127.0.0.1 until Ctrl-C."""
    from fl_privacy.display import console
    from fl_privacy.owner import Owner

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Owner(home, port or None) as owner:
        console.print(f"{owner.name} answers at {owner.datasite.url}; stop with Ctrl-C")
        try:
            owner.datasite.wait()
        except KeyboardInterrupt:
            console.print("stopping")


@command(owner_app, "status")
def owner_status(home: Home = HERE) -> None:
    """Show keys, corpus, budget and decisions of a running owner."""
    from fl_privacy.display import console, status
    from fl_privacy.owner import Owner

    console.print(status(Owner.running(home).guard.call("GET", "/v1/status")))


@command(owner_app, "card")
def owner_card(home: Home = HERE) -> None:
    """Print this owner's signed identity card as JSON; send it to the other owners."""
    from fl_privacy.encryption.keys import Identity
    from fl_privacy.guard.home import Domain

    guard = home / "guard"
    typer.echo(Identity.load(guard / "keys").card(Domain.read(guard / "domain.toml").owner).canonical().decode())


@command(owner_app, "enrol")
def owner_enrol(
    cards: Annotated[list[Path], typer.Argument(help="Identity cards of all owners, this one's included.")],
    home: Home = HERE,
    yes: Annotated[bool, typer.Option("--yes", help="The fingerprints have been compared already.")] = False,
) -> None:
    """Join the other owners, after comparing their fingerprints by telephone or in person."""
    from fl_privacy.display import console, fingerprints
    from fl_privacy.encryption.registry import build_registry
    from fl_privacy.messages import Signed
    from fl_privacy.owner import Owner

    signed = [Signed.parse(path.read_bytes()) for path in cards]
    console.print(fingerprints(build_registry(signed)))
    if not yes:
        typer.confirm("Do these fingerprints match what each owner reads out?", abort=True)
    answer = Owner.running(home).enrol(signed)
    console.print(f"enrolled in registry {answer['registry'][:16]}…")


@command(owner_app, "invite")
def owner_invite(name: str, email: str, home: Home = HERE) -> None:
    """Create a scientist's account; prints the generated password once."""
    from fl_privacy.owner import Owner

    typer.echo(Owner.running(home).invite(name, email))


@command(corpus_app, "add")
def corpus_add(
    file: Annotated[Path, typer.Argument(help="JSONL, TXT (one record a line) or CSV, in UTF-8.")],
    home: Home = HERE,
    mock: Annotated[Path | None, typer.Option(help="Rows that you publish for scientists to look at.")] = None,
    field: Annotated[str, typer.Option(help="Name of the text field or column.")] = "text",
) -> None:
    """Copy a corpus into the strong room. Stop `owner serve` first."""
    from fl_privacy.display import console
    from fl_privacy.guard.corpus import add_corpus, load_rows
    from fl_privacy.guard.home import GuardHome

    with GuardHome(home / "guard") as guard:
        card = add_corpus(guard, file, load_rows(mock) if mock else [], field)
    console.print(f"{card.owner}: about {card.declared_size:,} records (declared), {len(card.mock_rows)} mock rows published")


@command(requests_app, "list")
def requests_list(home: Home = HERE) -> None:
    """List all requests with their numbers."""
    from fl_privacy.display import console, request_list
    from fl_privacy.owner import Owner

    console.print(request_list(Owner.running(home).requests()))


@command(requests_app, "review")
def requests_review(number: int, home: Home = HERE) -> None:
    """Explain request NUMBER: the plan in words, the code, the forecast of epsilon."""
    from fl_privacy.display import console, review
    from fl_privacy.owner import Owner

    owner = Owner.running(home)
    console.print(review(number, owner.request(number).email, owner.review(number)))


@command(requests_app, "approve")
def requests_approve(number: int, home: Home = HERE) -> None:
    """Approve request NUMBER: exactly this plan, code, corpus and scientist's key."""
    from fl_privacy.owner import Owner

    Owner.running(home).approve(number)
    typer.echo(f"request {number} is approved")


@command(requests_app, "deny")
def requests_deny(
    number: int, reason: Annotated[str, typer.Option(help="What the scientist is told.")], home: Home = HERE
) -> None:
    """Deny request NUMBER, or take an approval back."""
    from fl_privacy.owner import Owner

    Owner.running(home).deny(number, reason)
    typer.echo(f"request {number} is denied")


@command(ledger_app, "show")
def ledger_show(home: Home = HERE) -> None:
    """Show every entry of the ledger, after checking its chain and signatures."""
    from fl_privacy.display import console, ledger
    from fl_privacy.owner import read_ledger

    console.print(ledger(*read_ledger(home)))


@command(ledger_app, "export")
def ledger_export(file: Path, home: Home = HERE) -> None:
    """Write the signed entries to FILE (JSON lines) for an auditor; prints the owner's public key."""
    from fl_privacy.owner import export_ledger

    typer.echo(export_ledger(home, file))


@command(ledger_app, "verify")
def ledger_verify(
    file: Annotated[Path, typer.Argument(help="A ledger export.")],
    key: Annotated[str, typer.Option(help="The owner's public signing key, in hex (see `owner status`).")],
) -> None:
    """Verify an export: chain, signatures, and epsilon recomputed by an independent accountant."""
    from fl_privacy.display import audit, console
    from fl_privacy.privacy.audit import audit_export

    console.print(audit(audit_export(file, key)))


@command(app, "corpora")
def corpora_show(federation: FederationFile = Path("federation.toml")) -> None:
    """Scientist: show what the owners offer, with mock rows."""
    from fl_privacy.display import console, corpora

    with _connected(federation) as connected:
        console.print(corpora(connected.corpora()))


@command(app, "submit")
def submit(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.toml")], federation: FederationFile = Path("federation.toml")
) -> None:
    """Scientist: pass the owners' sealed keys on and ask every owner of PLAN.toml for approval."""
    from fl_privacy.display import console
    from fl_privacy.scientist.files import read_plan

    plan, _ = read_plan(plan_file)
    with _connected(federation) as connected:
        connected.relay_keys()
        connected.submit(plan)
    console.print(f"submitted {plan.name!r} to {', '.join(plan.owners)}; run `fl-privacy train {plan_file}` once approved")


@command(app, "train")
def train(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.toml")],
    federation: FederationFile = Path("federation.toml"),
    out: Annotated[Path, typer.Option(help="Where model, history and picture go.")] = Path("runs/latest"),
    validation: Annotated[Path | None, typer.Option(help="Your own validation text; by default the owners' mock rows.")] = None,
) -> None:
    """Scientist: train PLAN.toml, which every owner has approved; shows progress and leaves the model in --out."""
    from fl_privacy.display import LiveRounds, console, rounds
    from fl_privacy.scientist.files import read_plan, read_texts

    plan, bundle = read_plan(plan_file)
    with _connected(federation) as connected, LiveRounds(plan.rounds) as live:
        texts = read_texts(validation) if validation else connected.mock_rows(plan)
        history = connected.run(plan, bundle, texts, out, watcher=live)
    console.print(rounds(history.rounds, history.accuracy_before))
    console.print(f"model: {out / 'model'}   picture: {out / 'rounds.png'}")


def _connected(federation: Path) -> Any:
    from fl_privacy.scientist.files import connect

    return connect(federation, lambda prompt: typer.prompt(prompt, hide_input=True))


def main() -> None:
    """Entry point for ``python -m fl_privacy``."""
    app()


