"""Accounts and the published corpus of a datasite, set up by its owner."""

from __future__ import annotations

import contextlib
import io
import re
import secrets
from typing import Any

import syft
from syft.service.dataset.dataset import Contributor
from syft.service.user.roles import Roles
from syft.service.user.user_roles import ServiceRole

from fl_privacy.datasite.launch import Datasite
from fl_privacy.errors import ConnectionFailed, CredentialsRefused
from fl_privacy.messages import CorpusCard

ASSET = "records"


def login_owner(datasite: Datasite) -> Any:
    """A Syft client with the owner's authority. Raises: ConnectionFailed, CredentialsRefused."""
    try:
        guest = syft.connect(url=datasite.url)
        key = guest.connection.login(email=datasite.identity.email, password=datasite.identity.password)
    except OSError:  # every error of the HTTP library that Syft uses is one
        raise ConnectionFailed(f"the datasite of {datasite.owner} at {datasite.url} does not answer; is it running?") from None
    except syft.SyftException:
        raise CredentialsRefused(f"the datasite of {datasite.owner} does not know its owner; was its state replaced?") from None
    return type(guest)(connection=guest.connection, metadata=guest.metadata, credentials=key.signing_key)


def invite_scientist(client: Any, name: str, email: str) -> str:
    """Create a data scientist's account.

    Args: client is the owner's; email is written in lower case. Returns: the generated password, shown only here.
    Raises: CredentialsRefused when the e-mail is malformed or taken.
    """
    email = email.lower()
    if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", email):
        raise CredentialsRefused(f"{email!r} is not an e-mail address")
    password = secrets.token_urlsafe(18)
    try:
        client.api.services.user.create(
            name=name, email=email, password=password, password_verify=password, role=ServiceRole.DATA_SCIENTIST
        )
    except syft.SyftException as problem:
        raise CredentialsRefused(f"no account for {email}: {problem.public_message}") from None
    return password


def publish_corpus(client: Any, cards: list[CorpusCard]) -> None:
    """Publish one Syft dataset per corpus; a card that changed replaces the older one.

    Privacy: the asset's private side is a reference (owner, digest, declared size), so that nothing private lies in Syft;
    the mock side is the mock rows in full, public by the owner's decision.
    """
    published = {dataset.name: dataset for dataset in client.api.services.dataset.get_all()}
    for card in cards:
        summary = f"{card.declared_size} {card.unit}s (declared), corpus {card.corpus[:16]}, card {card.digest()[:16]}"
        if card.title in published:
            if published[card.title].summary == summary:
                continue
            client.api.services.dataset.delete(uid=published[card.title].id)
        dataset = syft.Dataset(name=card.title, description=card.description, summary=summary)
        dataset.add_asset(syft.Asset(name=ASSET, data=_reference(card), mock=_mock(card), mock_is_real=False))
        for shown in (dataset, *dataset.asset_list):  # else Syft shows the owner's e-mail, which is half of its log-in
            shown.contributors.add(Contributor(name=card.owner, email="", role=str(Roles.UPLOADER)))
        with contextlib.redirect_stderr(io.StringIO()):  # Syft's progress bar
            client.upload_dataset(dataset)


def _reference(card: CorpusCard) -> dict[str, Any]:
    return {"owner": card.owner, "corpus": card.corpus, "declared_size": card.declared_size, "held_by": "guard"}


def _mock(card: CorpusCard) -> dict[str, Any]:
    rows = [row.model_dump(mode="json", exclude_none=True) for row in card.mock_rows]
    return {"owner": card.owner, "corpus": card.corpus, "declared_size": card.declared_size, "rows": rows}
