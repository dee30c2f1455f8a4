"""Commands on privacy ledgers: an owner's own, and an auditor's check of several."""

from __future__ import annotations

from pathlib import Path

import click

from fl_privacy.cli_owner import FILE, home_option


@click.group("ledger")
def ledger_app() -> None:
    """The owner's privacy ledger: what was spent, and proof of it."""


@ledger_app.command("show")
@home_option
def ledger_show(home: Path) -> None:
    """Show every entry of the ledger, after checking its chain and signatures."""
    from fl_privacy.display import console, ledger
    from fl_privacy.owner_files import read_ledger

    console.print(ledger(*read_ledger(home)))


@ledger_app.command("export")
@click.argument("file", type=FILE)
@home_option
def ledger_export(file: Path, home: Path) -> None:
    """Write the signed entries to FILE (JSON lines) for an auditor, or as a backup; prints the owner's public key."""
    from fl_privacy.owner_files import export_ledger

    click.echo(export_ledger(home, file))


@ledger_app.command("import")
@click.argument("file", type=FILE)
@home_option
@click.option("--head", help="The latest head that another owner or the scientist kept: an older FILE is then refused.")
def ledger_import(file: Path, home: Path, head: str | None) -> None:
    """Bring back from FILE, an export, what a lost or older ledger lacks. Stop `owner serve` first.

    Spends that FILE does not hold are forgotten, and epsilon is then told too low. So ask the scientist or another owner for
    the last head they have seen of this ledger (`ledger_head` in history.jsonl), and give it with --head.
    """
    from fl_privacy.owner_files import import_ledger

    click.echo(f"{import_ledger(home, file, head)} entries were added")


@ledger_app.command("verify")
@click.argument("file", type=FILE)
@click.option("--key", required=True, help="The owner's public signing key, in hex (see `owner status`).")
def ledger_verify(file: Path, key: str) -> None:
    """Verify FILE, an export: chain, signatures, and epsilon recomputed by an independent accountant."""
    from fl_privacy.display import audit, console
    from fl_privacy.privacy.audit import audit_export

    console.print(audit(audit_export(file, key)))


@click.command("audit")
@click.argument("exports", type=FILE, nargs=-1, required=True, metavar="EXPORT...")
@click.option("--home", "-H", type=FILE, help="An owner's folder: check against the keys that this owner vetted.")
@click.option("--registry", type=FILE, help="Check against the keys in this file, made with `owner registry`; with --key.")
@click.option("--key", help="Public signing key (hex) or fingerprint of one owner in --registry, known from elsewhere.")
@click.option("--history", type=FILE, help="The scientist's RUN/history.jsonl, to be compared with the ledgers.")
@click.option("--out", type=FILE, default="audit", show_default=True, help="Folder for report.html and report.json.")
def audit(
    exports: tuple[Path, ...], home: Path | None, registry: Path | None, key: str | None, history: Path | None, out: Path
) -> None:
    """Auditor: verify owners' ledgers, by themselves and against each other.

    EXPORT is what an owner's `ledger export` wrote; give those of all owners. Checks chains, signatures and countersignatures,
    counts epsilon again with two independent accountants, compares it with budgets, approvals and the scientist's history, and
    writes a report. Ends with 1 if anything is found.

    Without --home or --registry each export is checked against the key that it names itself: that shows edits, not who made it.

    \b
    fl-privacy audit *.jsonl --registry owners.json --key 3f2a... --history runs/latest/history.jsonl
    """
    from fl_privacy.auditor import audit_ledgers
    from fl_privacy.display import audit_report, console
    from fl_privacy.owner_files import read_registry, read_signed_registry

    trusted = None
    if home and not (registry or key):
        trusted = read_registry(home)
    elif registry and key and not home:
        trusted = read_signed_registry(registry, key)
    elif home or registry or key:
        raise click.UsageError("give --home (an owner), or --registry and --key (an auditor), or none of them")
    report = audit_ledgers(exports, trusted, history)
    report.write(out)
    console.print(audit_report(report))
    console.print(f"report: {out / 'report.html'}")
    if report.findings:
        raise SystemExit(1)
