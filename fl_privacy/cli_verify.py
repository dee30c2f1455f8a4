"""Commands that check others' work, for owners and auditors."""

from __future__ import annotations

from pathlib import Path

import click

from fl_privacy.cli_owner import FILE


@click.group("sums")
def sums_app() -> None:
    """The encrypted sums of a training run, and proof that they were added rightly."""


@sums_app.command("verify")
@click.argument("run", type=FILE)
@click.option("--home", "-H", type=FILE, help="An owner's folder: check against the keys that this owner vetted.")
@click.option("--registry", type=FILE, help="Check against the keys in this file, made with `owner registry`; with --key.")
@click.option("--key", help="Public signing key (hex) or fingerprint of one owner in --registry, known from elsewhere.")
def sums_verify(run: Path, home: Path | None, registry: Path | None, key: str | None) -> None:
    """Add every encrypted update of RUN again, and compare with what the owners signed.

    RUN is the folder that a scientist trained into (`train --out`). For each round this checks every signature, adds the
    ciphertexts again (nothing is decrypted), compares the result byte for byte with the total that was opened, and checks that
    two owners opened it to the same values. It ends with 1 if a round is not proved; the other rounds are listed all the same.

    A round is checked against the owners' keys at that time: after a change of the registry, give the earlier one as a file.

    \b
    fl-privacy sums verify runs/latest --home clinic                            # an owner
    fl-privacy sums verify runs/latest --registry owners.json --key 3f2a...     # an auditor
    """
    from fl_privacy.auditor import verify_sums
    from fl_privacy.display import console, watched
    from fl_privacy.owner_files import read_registry, read_signed_registry

    if home and not (registry or key):
        trusted = read_registry(home)
    elif registry and key and not home:
        trusted = read_signed_registry(registry, key)
    else:
        raise click.UsageError("give --home (an owner), or --registry and --key (an auditor)")
    sums = verify_sums(run, trusted, watched)
    console.print(sums)
    for verdict in sums:
        if verdict.error:
            raise verdict.error
