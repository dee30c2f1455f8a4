"""What leaves a guard never holds key material, a private row, or an update in the clear; checked byte by byte on a real round.

Three guards enrol, train, close, reveal and open; they are asked wrong things in between. Every answer of the service that the
datasite can reach, every published blob, every log record and error is searched for every secret that the guards hold.
"""

from __future__ import annotations

import base64
import json
import logging
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from fastapi.testclient import TestClient

from fl_privacy.encryption import cipher
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.masks import derive_seed
from fl_privacy.errors import ConnectionFailed, FlPrivacyError
from fl_privacy.guard.client import FRONT_SOCKET, GuardClient
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.service import front_app
from fl_privacy.messages import CloseRequest, OpenRequest, RevealRequest, Signed, UpdateReceipt
from fl_privacy.parameters import flatten, from_bytes
from fl_privacy.round_order import RoundOrder
from tests.builders import OWNERS
from tests.guard.conftest import Strongrooms, make_strongrooms, upload
from tests.signed_round import sha256
from tests.trust.leaks import Leaks


@dataclass
class Told:
    """Everything that left the guards: where, and the bytes."""

    pieces: list[tuple[str, bytes]] = field(default_factory=list)

    def add(self, where: str, data: bytes) -> None:
        self.pieces.append((where, data))


@dataclass
class Fronts:
    """The services that the datasites reach, with every answer kept."""

    told: Told
    clients: dict[str, TestClient]

    def ask(self, owner: str, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        answer = self.clients[owner].request(method, path, content=content)
        heads = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        self.told.add(f"{method} {path} at {owner}", heads.encode() + b"\n" + answer.content)
        return answer

    def signed(self, owner: str, path: str, message: Any) -> Signed:
        answer = self.ask(owner, "POST", path, message.canonical())
        assert answer.status_code == 200, answer.text
        return Signed.model_validate(answer.json())


@dataclass
class Run:
    """A whole round, what it told, and what must not be in it."""

    rooms: Strongrooms
    order: RoundOrder
    before_reveal: Told
    after_reveal: Told
    secrets: dict[str, bytes]
    self_masks: dict[str, bytes]
    rows: dict[str, str]


def secrets_of(rooms: Strongrooms, order: RoundOrder) -> dict[str, bytes]:
    """Keys, shared secrets, salts and updates of all guards, while they are still there."""
    found: dict[str, bytes] = {}
    start = flatten(from_bytes(rooms.bundle.weights), order.tensors)
    for owner, guard in rooms.guards.items():
        identity = guard.home.identity
        found[f"signing key of {owner}"] = identity.signing_key.private_bytes_raw()
        found[f"agreement key of {owner}"] = identity.agreement_key.private_bytes_raw()
        found[f"corpus salt of {owner}"] = (guard.home.folder / "corpus" / "salt.bin").read_bytes()
        update = np.fromfile(guard.rounds.orders.folder(order.digest()).update, "<f4")
        found[f"update of {owner}"] = update.tobytes()
        found[f"weighted update of {owner}"] = (update / np.float32(len(OWNERS))).tobytes()
        found[f"local model of {owner}"] = (start + update).astype("<f4").tobytes()
        for peer in OWNERS:
            if peer > owner:
                public = bytes.fromhex(guard.home.registry.card(peer).agreement_key)
                shared = identity.agreement_key.exchange(X25519PublicKey.from_public_bytes(public))
                found[f"shared secret of {owner} and {peer}"] = shared
                found[f"mask seed of {owner} and {peer}"] = derive_seed(shared, "mask", order.digest(), owner, peer)
    key = rooms.guards[OWNERS[0]].home.secret_key("bfv")
    found["HE key"] = key
    found["HE key, as coefficients"] = cipher.unpack_coefficients(key[8:]).astype("<u8").tobytes()
    return found


def rows_of(rooms: Strongrooms) -> dict[str, str]:
    """Private rows that are not, by chance, part of a row that an owner publishes."""
    shown = "\n".join(row.text for guard in rooms.guards.values() for card in guard.corpora() for row in card.mock_rows)
    rows: dict[str, str] = {}
    for owner, guard in rooms.guards.items():
        for number, line in enumerate((guard.home.folder / "corpus" / "rows.jsonl").read_text("utf-8").splitlines()):
            text = json.loads(line)["text"]
            if text not in shown:
                rows[f"row {number} of {owner}"] = text
    return rows


def wrong_requests(fronts: Fronts, rooms: Strongrooms, request: CloseRequest | None) -> None:
    """What a hostile datasite might ask; every answer is a refusal."""
    home = rooms.guards["bank"].home
    names = [str(home.folder / "keys" / "identity.key"), "..%2Fkeys%2Fidentity.key", "identity.key", "0" * 64, "", "\u00e9"]
    for name in names:
        assert fronts.ask("bank", "GET", f"/v1/blobs/{name}").status_code >= 400
        assert fronts.ask("bank", "GET", f"/v1/orders/{name}").status_code >= 400
        assert fronts.ask("bank", "PUT", f"/v1/models/{name}/{name}/{name}").status_code >= 400
        assert fronts.ask("bank", "GET", f"/v1/code/{name}").status_code >= 400
    orders = [rooms.order(round=7), rooms.order(cohort=OWNERS[:2], weights=(200, 200)), rooms.order(key="0" * 64)]
    stolen = rooms.order().model_copy(update={"signature": "0" * 128})
    bodies = [order.canonical() for order in (*orders, stolen)] + [b"", b"{}", b"[" * 5000, b"\xff", b'{"kind": 1}']
    for body in bodies:
        for path in ("orders", "closings", "reveals", "openings", "status", "enrol", "approve"):
            assert fronts.ask("bank", "POST", f"/v1/{path}", body).status_code >= 400, (path, body[:80])
        for path in ("envelopes", "registry", "blobs/" + "0" * 64):
            assert fronts.ask("bank", "PUT", f"/v1/{path}", body).status_code >= 400, (path, body[:80])
    if request:
        for path in ("reveals", "openings"):
            assert fronts.ask("bank", "POST", f"/v1/{path}", request.canonical()).status_code >= 400


def look_around(fronts: Fronts) -> None:
    for owner in OWNERS:
        for path in ("info", "corpora", "ledger", "registry", "envelopes"):
            assert fronts.ask(owner, "GET", f"/v1/{path}").status_code == 200


def train_and_add(fronts: Fronts, rooms: Strongrooms, signed: Signed, folder: Path) -> CloseRequest:
    """Order it everywhere, fetch what is published, add it, and upload the total."""
    order, receipts, paths = RoundOrder.parse(signed.body), [], []
    for owner in OWNERS:
        fronts.ask(owner, "POST", "/v1/orders", signed.canonical())
    for owner in OWNERS:
        deadline = time.monotonic() + 120
        while (state := fronts.ask(owner, "GET", f"/v1/orders/{order.digest()}").json())["state"] == "training":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert state["state"] == "sealed", state
        receipts.append(Signed.model_validate(state["receipt"]))
        ciphertext = UpdateReceipt.parse(receipts[-1].body).ciphertext
        paths.append(folder / f"{owner}.bin")
        paths[-1].write_bytes(fronts.ask(owner, "GET", f"/v1/blobs/{ciphertext}").content)
    add_updates(paths, order, folder / "total.bin")
    rooms.upload((folder / "total.bin").read_bytes())
    return CloseRequest(order=signed, receipts=tuple(receipts), total=sha256((folder / "total.bin").read_bytes()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder, before, after = tmp_path_factory.mktemp("rooms"), Told(), Told()
    records = _Records(before)
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(records)
    root.setLevel(logging.DEBUG)
    rooms = make_strongrooms(folder)
    fronts = Fronts(before, {owner: TestClient(front_app(guard)) for owner, guard in rooms.guards.items()})
    look_around(fronts)
    wrong_requests(fronts, rooms, None)
    signed = rooms.order()
    order = RoundOrder.parse(signed.body)
    close = train_and_add(fronts, rooms, signed, folder)
    secrets, rows = secrets_of(rooms, order), rows_of(rooms)
    self_masks = {
        f"self-mask of {owner}": guard.rounds.orders.folder(order.digest()).self_mask.read_bytes()
        for owner, guard in rooms.guards.items()
    }
    survivors = tuple(fronts.signed(owner, "/v1/closings", close) for owner in OWNERS)
    wrong_requests(fronts, rooms, close)
    look_around(fronts)

    fronts.told = records.told = after
    request = RevealRequest(**dict(close), survivors=survivors)
    reveals = tuple(fronts.signed(owner, "/v1/reveals", request) for owner in OWNERS)
    opening = OpenRequest(**dict(request), reveals=reveals)
    for owner in OWNERS[:2]:
        upload(rooms.guards[owner], opening.canonical())
        answer = fronts.ask(owner, "POST", f"/v1/openings/{sha256(opening.canonical())}")
        opened = json.loads(Signed.model_validate(answer.json()).body)
        fronts.ask(owner, "GET", f"/v1/blobs/{opened['values']}")
    wrong_requests(fronts, rooms, close)
    look_around(fronts)
    root.removeHandler(records)
    root.setLevel(level)
    yield Run(rooms, order, before, after, secrets, self_masks, rows)
    for guard in rooms.guards.values():
        guard.close()


class _Records(logging.Handler):
    """Log records of this process: the guards', their libraries', and the test's."""

    def __init__(self, told: Told) -> None:
        super().__init__(logging.DEBUG)
        self.told = told

    def emit(self, record: logging.LogRecord) -> None:
        self.told.add(f"log of {record.name}", f"{record.getMessage()} {record.exc_info} {record.__dict__}".encode())


def leaked(told: Told, leaks: Leaks) -> dict[str, set[str]]:
    """Where something secret was told, and what."""
    if not leaks.found_in(b"\n".join(data for _, data in told.pieces)):
        return {}
    return {where: found for where, data in told.pieces if (found := leaks.found_in(data))}


def test_nothing_that_left_the_guards_before_the_reveal_holds_a_secret(run: Run) -> None:
    assert len(run.before_reveal.pieces) > 200
    assert leaked(run.before_reveal, Leaks(run.secrets | run.self_masks, run.rows)) == {}


def test_nothing_that_left_the_guards_after_the_reveal_holds_a_secret_but_the_self_masks(run: Run) -> None:
    assert leaked(run.after_reveal, Leaks(run.secrets, run.rows)) == {}
    revealed = leaked(run.after_reveal, Leaks(run.self_masks, {}))
    assert {what for found in revealed.values() for what in found} == run.self_masks.keys()


def test_the_blobs_that_guards_publish_hold_no_secret(run: Run) -> None:
    leaks = Leaks(run.secrets | run.self_masks, run.rows)
    blobs = [path for guard in run.rooms.guards.values() for path in guard.blobs.outbox.iterdir()]
    assert len(blobs) >= len(OWNERS) + 2, "an update of each, and the sum of two openers"
    assert {path: found for path in blobs if (found := leaks.found_in(path.read_bytes()))} == {}


def test_the_search_finds_every_secret_however_it_is_written(run: Run) -> None:
    """So that the tests above can fail: one answer, with a piece of each secret planted in it."""
    secrets = run.secrets | run.self_masks
    leaks = Leaks(secrets, run.rows)
    answer = next(data for where, data in run.before_reveal.pieces if "/v1/ledger" in where)
    assert leaks.found_in(answer) == set()
    for name, secret in secrets.items():
        at = len(secret) // 2 - 12
        piece = secret[at : at + 40] if len(secret) > 64 else secret
        for form in (piece, piece.hex().encode(), piece.hex().upper().encode(), base64.b64encode(piece)):
            assert name in leaks.found_in(answer[:77] + form + answer[77:]), name
        assert name in leaks.found_in(json.dumps({"data": base64.urlsafe_b64encode(b"xy" + piece).decode()}).encode())
    for name, text in list(run.rows.items())[::50]:
        for form in (text.encode(), json.dumps({"text": text}).encode(), text.encode().hex().encode()):
            assert name in leaks.found_in(answer + form), name


def test_the_search_finds_update_values_that_are_written_as_numbers(run: Run) -> None:
    update = np.frombuffer(run.secrets["update of bank"], "<f4")[100:108]
    leaks = Leaks(run.secrets, {})
    for numbers in (update.tolist(), [str(value) for value in update]):
        assert "update of bank" in leaks.found_in(json.dumps({"values": numbers}).encode())


def test_what_a_guard_prints_of_itself_holds_no_secret(run: Run) -> None:
    leaks = Leaks(run.secrets | run.self_masks, run.rows)
    for guard in run.rooms.guards.values():
        for thing in parts(guard):
            assert leaks.found_in(f"{thing!r} {thing!s} {thing}".encode()) == set(), type(thing).__name__


def test_nothing_that_holds_keys_can_be_pickled(run: Run) -> None:
    for thing in parts(run.rooms.guards["bank"])[:7]:
        with pytest.raises((TypeError, FlPrivacyError)):
            pickle.dumps(thing)


def parts(guard: Guard) -> list[Any]:
    """What holds, or is next to, the keys."""
    home = guard.home
    keepers: list[Any] = [guard, home, home.identity, home.ledger, guard.rounds, guard.closing, guard.enrolment]
    return [
        *keepers,
        guard.rounds.orders,
        *guard.rounds.orders.of_plan(guard.approvals.all()[0].training_plan.digest()),
        guard.blobs,
    ]


@pytest.mark.slow
def test_a_guards_process_writes_no_secret_to_its_log(run: Run, tmp_path: Path) -> None:
    """The round goes on in a real process: a second order is trained, wrong ones are refused, and it is told to stop."""
    guard = run.rooms.guards["bank"]
    signed = run.rooms.order(round=1)
    guard.close()
    log = tmp_path / "guard.log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "fl_privacy.guard", str(guard.home.folder)], stdout=file, stderr=file)
    try:
        client = GuardClient(guard.home.folder / FRONT_SOCKET)
        told = Told()
        wait_for(client)
        for body in (b"[" * 5000, b"{}", run.rooms.order(round=9).canonical()):
            with pytest.raises(FlPrivacyError) as refused:
                client.call("POST", "/v1/orders", body)
            told.add("refusal", str(refused.value).encode())
        digest = client.place_order(signed)["digest"]
        deadline = time.monotonic() + 120
        while (state := client.order_state(digest))["state"] == "training":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert state["state"] == "sealed", state
        told.add("state", json.dumps(state).encode())
    finally:
        process.terminate()
        process.wait(30)
        run.rooms.guards["bank"] = Guard(GuardHome(guard.home.folder))  # as the other tests and the fixture expect it
    folder = guard.home.folder / "rounds" / digest
    secrets = run.secrets | run.self_masks
    secrets |= {
        "second update": (folder / "update.f32").read_bytes(),
        "second self-mask": (folder / "self-mask.key").read_bytes(),
    }
    told.add("guard.log", log.read_bytes())
    assert leaked(told, Leaks(secrets, run.rows)) == {}


def wait_for(client: GuardClient, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            client.call("GET", "/v1/info")
            return
        except ConnectionFailed:
            assert time.monotonic() < deadline
            time.sleep(0.1)
