"""Thousands of random calls by a scientist and by strangers change nothing of the owner's and bring no secret out."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from syft.client.api import SignedSyftAPICall, SyftAPICall
from syft.serde.serialize import _serialize as serialize
from syft.server.credentials import SyftSigningKey

from fl_privacy.datasite import accounts
from fl_privacy.datasite import requests as code_requests
from fl_privacy.datasite.hardening import SCIENTIST_MAY
from fl_privacy.datasite.launch import Datasite
from fl_privacy.messages import CorpusCard, Row
from fl_privacy.scientist.desk import Desk
from tests.datasite.crafted import left_open
from tests.datasite.guard_double import GuardDouble, serve
from tests.trust.api_fuzz import Fuzzer, Target, every_uid, post, state
from tests.trust.syft_exploits import call, source, submission

pytestmark = pytest.mark.end_to_end

ALLOWED = [f"{service}.{method}" for service, methods in SCIENTIST_MAY.items() for method in methods]
CARD = CorpusCard(
    owner="alba",
    title="Letters",
    description="Invented.",
    corpus="c" * 64,
    declared_size=500,
    mock_rows=(Row(text="Dear Ada,"), Row(text="Yours")),
)


@dataclass
class Site:
    datasite: Datasite
    owner: Any
    scientists: list[Desk]
    victim: Desk
    passwords: list[str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("fuzz")
    guard = GuardDouble()
    with serve(guard.app(), uds=str(folder / "g.sock")), Datasite(folder / "alba", "alba", folder / "g.sock") as datasite:
        owner = accounts.login_owner(datasite)
        accounts.publish_corpus(owner, [CARD])
        desks, passwords = [], []
        for name in ("victor", "ada", "bob"):
            passwords.append(accounts.invite_scientist(owner, name, f"{name}@lab.example.org"))
            desks.append(Desk.login("alba", datasite.url, f"{name}@lab.example.org", passwords[-1]))
        for desk in desks[:2]:  # one request that waits, and one that was denied
            for verdict in ("wait", "deny"):
                name, text = source("return 1")
                call(desk._client, "code.request_code_execution", code=submission(desk._client, name, text))
                if verdict == "deny":
                    code_requests.deny(owner, code_requests.pending(owner)[-1], "no")
        yield Site(datasite, owner, desks[1:], desks[0], passwords)
        for desk in desks:
            desk.close()


def secrets_of(site: Site) -> dict[str, bytes]:
    """What no answer may contain: keys as text and as bytes, passwords and their hashes, the owner's e-mail."""
    identity, client = site.datasite.identity, site.victim._client
    found = {
        "server key": bytes.fromhex(identity.server_key),
        "server key, hex": identity.server_key.encode(),
        "owner's password": identity.password.encode(),
        "owner's e-mail": identity.email.encode(),
        "victim's key": bytes(client.credentials.signing_key),
        "victim's key, hex": str(client.credentials).encode(),
        "victim's password": site.passwords[0].encode(),
    }
    (database,) = site.datasite.home.rglob("*_json.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute('SELECT fields FROM "User"').fetchall()
    for number, (fields,) in enumerate(rows):
        told = json.loads(fields) if isinstance(fields, str) else fields
        found[f"password hash {number}"] = str(told["hashed_password"]).encode()
        found[f"salt {number}"] = str(told["salt"]).encode()
    return {name: value for name, value in found.items() if len(value) >= 16}


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "state" not in path.relative_to(folder).parts}


def fuzz(site: Site, calls: int, seed: int) -> Counter[int]:
    """Send so many calls of scientists and strangers in turn; returns how many had which HTTP status."""
    folder = site.datasite.home.parent
    before, files_before, hidden = state(site.owner), files(folder), secrets_of(site)
    known = every_uid(site.owner)
    texts = [site.datasite.identity.email, "victor@lab.example.org", "default-pool", "admin", "Letters"]
    target = Target(site.datasite.url, site.owner.id, known, texts, folder / "pwned")
    callers = [(desk._client.credentials, ALLOWED) for desk in site.scientists]
    session, statuses = requests.Session(), Counter[int]()
    fuzzers = [Fuzzer(target, seed + number, allowed) for number, (_, allowed) in enumerate([*callers, (None, [])])]
    leaks = []
    for number in range(calls):
        which = number % len(fuzzers)
        key = callers[which][0] if which < len(callers) else SyftSigningKey.generate()
        body = fuzzers[which].body(key)
        answer = post(session, site.datasite.url, body)
        while answer.status_code == 429:
            time.sleep(int(answer.headers["retry-after"]))
            answer = post(session, site.datasite.url, body)
        statuses[answer.status_code] += 1
        leaks += [(number, name) for name, value in hidden.items() if value in answer.content and value not in body]
    assert leaks == []
    assert files(folder) == files_before
    after = state(site.owner)
    for what in ("users", "settings", "datasets", "pools", "endpoints", "peers"):
        assert after[what] == before[what], what
    for what in ("requests", "codes"):
        assert {uid: after[what].get(uid) for uid in before[what]} == before[what], what
    assert not [code for code in after["codes"].values() if code[2]]
    assert site.victim.relay.info() == {"owner": "alba"}
    assert accounts.login_owner(site.datasite) is not None
    return statuses


def no_secret_in_the_log(site: Site) -> bool:
    log = site.datasite.log.read_bytes()
    return not [name for name, value in secrets_of(site).items() if value in log]


def test_random_calls_change_nothing_and_bring_no_secret_out(site: Site) -> None:
    statuses = fuzz(site, calls=900, seed=1)
    print("api fuzz, answers by HTTP status:", dict(statuses))  # noqa: T201
    assert set(statuses) <= {200, 400, 401, 413}
    assert no_secret_in_the_log(site)


def test_messages_that_crash_the_decoder_are_refused_and_the_next_call_is_answered(site: Site) -> None:
    client, session = site.scientists[0]._client, requests.Session()
    asked = SyftAPICall(server_uid=client.id, path="user.get_current_user", args=[], kwargs={})
    strangers = bytes(serialize(asked.sign(credentials=SyftSigningKey.generate()), to_bytes=True))
    bodies = [left_open(strangers, text) for text in (b"SignedSyftAPICall", b"signature", b"verify_key", b"bytes")]
    message = left_open(bytes(serialize(asked, to_bytes=True)), b"kwargs")
    signature = client.credentials.signing_key.sign(message).signature
    signed = SignedSyftAPICall(credentials=client.verify_key, serialized_message=message, signature=signature)
    for body in (*bodies, bytes(serialize(signed, to_bytes=True))):
        answer = post(session, site.datasite.url, body)
        assert (answer.status_code, answer.json()["error"]) == (400, "MessageError")
        assert call(client, "user.get_current_user").email.endswith("@lab.example.org")
    assert site.datasite.exit_status is None
    told = f"a message of 'ada' (key {str(client.verify_key)[:12]}) ended its decoder"
    assert told in site.datasite.log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_very_many_random_calls_change_nothing_and_bring_no_secret_out(site: Site) -> None:
    statuses = fuzz(site, calls=20_000, seed=secrets.randbelow(2**32))
    assert set(statuses) <= {200, 400, 401, 413}
    assert no_secret_in_the_log(site)
