"""Every place where bytes of another party are read, as a door for spoiled messages (see ``tests.trust.mutations``).

The parties that spoil messages hold real keys: where a signature stands, a part of the spoiled messages is signed again by its
rightful signer, since an owner or a scientist may itself be hostile.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import TypeAdapter, ValidationError

from fl_privacy import template
from fl_privacy.encryption import agreement, masks, packing
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.evidence import verify_round
from fl_privacy.encryption.keys import generate_secret_key, seal_key, unseal_key
from fl_privacy.encryption.registry import (
    RegistryRecord,
    SealedKey,
    build_registry,
    check_cohort,
    check_registry,
    verify_registry,
)
from fl_privacy.encryption.secret_sum import open_sum
from fl_privacy.errors import FlPrivacyError, MessageError
from fl_privacy.messages import CloseRequest, OpenRequest, RevealRequest, Signed, open_signed, public_hex, sign
from fl_privacy.parameters import from_bytes, to_bytes
from fl_privacy.round_order import CkksEncoding, RoundOrder
from tests import ckks_cohort
from tests.secure_cohort import make_cohort
from tests.signed_round import SignedRound, make_signed_round
from tests.trust.mutations import Door, spoil_bytes, spoil_json, spoil_tree, write_json

CARDS = TypeAdapter(list[Signed])
Mutate = Callable[[random.Random, Sequence[bytes]], bytes]


def update_door(folder: Path) -> Door:
    """An owner sends a BFV container; the aggregator adds it to those of the others."""
    kept = make_signed_round(make_cohort(3, 300), folder / "update")
    paths = [kept.evidence.update_path(owner) for owner in kept.cohort.owners]
    blobs = [path.read_bytes() for path in paths]

    def feed(data: bytes) -> None:
        paths[0].write_bytes(data)
        add_updates(paths, kept.cohort.order, folder / "added")

    return Door(blobs, feed, spoil_bytes)


def total_door(folder: Path) -> Door:
    """An aggregator sends a BFV total; an owner opens it."""
    kept = make_signed_round(make_cohort(3, 300), folder / "total")
    update = kept.evidence.update_path(kept.cohort.owners[0]).read_bytes()
    return Door([kept.evidence.total_path.read_bytes(), update], kept.cohort.open, spoil_bytes)


def request_door(folder: Path) -> Door:
    """A scientist sends requests made of the owners' words, some signed again by their signer."""
    kept = make_signed_round(make_cohort(3, 300), folder / "request")
    request, keys = kept.request, _keys(kept)
    messages = [_part(request, kind).canonical() for kind in (CloseRequest, RevealRequest, OpenRequest)]
    registry, scientist = kept.cohort.registry, public_hex(kept.cohort.scientist)

    kinds: list[tuple[type[CloseRequest], Callable[..., object]]] = [
        (CloseRequest, lambda asked, order: agreement.verify_receipts(order, asked.receipts, registry)),
        (RevealRequest, lambda asked, order: agreement.verify_survivors(asked, order, registry)),
        (OpenRequest, lambda asked, order: agreement.verify_reveals(asked, order, registry)),
    ]

    def feed(data: bytes) -> None:
        parsed = []
        for kind, verify in kinds:
            with suppress(MessageError):
                parsed.append((kind.parse(data), verify))
        if not parsed:
            raise MessageError("no request of any kind")
        for asked, verify in parsed:
            verify(asked, open_signed(asked.order, RoundOrder, scientist))

    return Door(messages, feed, _resigning(keys))


def evidence_door(folder: Path) -> Door:
    """A scientist hands over the files of a round; a verifier reads them."""
    kept = make_signed_round(make_cohort(3, 300), folder / "evidence")
    files = [kept.evidence.folder / name for name in ("request.json", "opened.json")]
    good = [path.read_bytes() for path in files]

    def feed(data: bytes) -> None:
        for path, rightful in zip(files, good, strict=True):
            path.write_bytes(data if data.startswith(rightful[:4]) else rightful)
        verify_round(kept.evidence.folder, kept.cohort.registry)

    return Door(good, feed, _resigning(_keys(kept)))


def order_door(folder: Path) -> Door:
    """A scientist signs an order of its own making; everything that reads an order gets it, without the guard's own checks."""
    kept = make_signed_round(make_cohort(3, 300), folder / "order")
    cohort, owner = kept.cohort, kept.cohort.owners[0]
    paths = [kept.evidence.update_path(name) for name in cohort.owners]
    words, total, seeds = kept.request, kept.evidence.total_path.read_bytes(), [*cohort.seeds.values()] * 10

    def feed(data: bytes) -> None:
        order = RoundOrder.parse(data)
        _each(
            lambda: check_cohort(order),
            lambda: check_registry(order, cohort.registry),
            lambda: packing.check_encoding(order),
            lambda: packing.block_count(order),
            lambda: masks.PairwiseMask(order, owner, cohort.identities[owner].agreement_key, cohort.registry).block(0),
            lambda: agreement.verify_receipts(order, words.receipts, cohort.registry),
            lambda: add_updates(paths, order, folder / "added"),
            lambda: open_sum(BytesIO(total), order, cohort.secret_key, seeds[: len(order.cohort)]),
        )

    ckks_order = cohort.order.model_copy(update={"encoding": CkksEncoding(value_range=0.1)})
    return Door([cohort.order.canonical(), ckks_order.canonical()], feed, spoil_json)


def cards_door(_: Path) -> Door:
    """Owners send cards that they signed themselves; another owner enrols with them and deals the key."""
    cohort = make_cohort(3)
    keys = {public_hex(identity.signing_key): identity.signing_key for identity in cohort.identities.values()}
    cards = [cohort.identities[owner].card(owner).model_dump(mode="json") for owner in cohort.owners]
    dealer, secret_key = cohort.owners[0], generate_secret_key()

    def feed(data: bytes) -> None:
        try:
            registry = build_registry(CARDS.validate_json(data))
        except ValidationError:
            raise MessageError("what the guard's service answers then") from None
        _each(*(partial(seal_key, secret_key, dealer, owner, cohort.identities[dealer], registry) for owner in registry.owners))

    return Door([json.dumps(cards).encode()], feed, _resigning(keys))


def registry_door(_: Path) -> Door:
    """A relay hands over a registry with its members' signatures."""
    cohort = make_cohort(3)
    keys = {public_hex(identity.signing_key): identity.signing_key for identity in cohort.identities.values()}
    signed = tuple(sign(cohort.registry, key) for key in keys.values())
    record = RegistryRecord(registry=signed[0], signatures=signed[1:])

    def feed(data: bytes) -> None:
        verify_registry(RegistryRecord.parse(data), next(iter(keys)))

    return Door([record.canonical()], feed, _resigning(keys))


def sealed_key_door(_: Path) -> Door:
    """The dealer, or a relay, hands over a sealed key."""
    cohort = make_cohort(3)
    dealer, owner = cohort.owners[:2]
    key = cohort.identities[dealer].signing_key
    envelope = seal_key(cohort.secret_key, dealer, owner, cohort.identities[dealer], cohort.registry)

    def feed(data: bytes) -> None:
        parsed = Signed.parse(data)
        SealedKey.parse(parsed.body)
        unseal_key(parsed, owner, cohort.identities[owner], cohort.registry)

    return Door([envelope.canonical()], feed, _resigning({public_hex(key): key}))


def plan_door(_: Path) -> Door:
    """A scientist submits code with a plan inside."""
    key = Ed25519PrivateKey.generate()
    signed = _signed_plan(key)

    def feed(data: bytes) -> None:
        template.signed_plan_of(template.render(Signed.parse(data)))

    return Door([signed.canonical()], feed, _resigning({public_hex(key): key}))


def code_door(_: Path) -> Door:
    """A scientist submits text that should be the template."""
    code = template.render(_signed_plan(Ed25519PrivateKey.generate())).encode()
    return Door([code], lambda data: template.signed_plan_of(data.decode("utf-8", "replace")), spoil_bytes)


def safetensors_door(_: Path) -> Door:
    """A scientist uploads a model; a scientist reads a checkpoint."""
    draw = np.random.default_rng(0)
    blobs = [
        to_bytes({"a.weight": draw.normal(size=(4, 3)).astype(np.float32), "b": draw.normal(size=5).astype(np.float32)}),
        to_bytes({"a.weight": np.zeros((0, 3), np.float32), "c": np.ones((), np.float32)}),
    ]

    def mutate(draw: random.Random, messages: Sequence[bytes]) -> bytes:
        data = draw.choice(messages)
        if draw.random() < 0.4:
            return spoil_bytes(draw, messages)
        size = int.from_bytes(data[:8], "little")  # length of the JSON header, then the header, then the numbers
        header = write_json(draw, spoil_tree(draw, json.loads(data[8 : 8 + size]), json.loads(data[8 : 8 + size])))
        claimed = draw.choice((len(header), len(header), len(header), len(header) + 1, 2**40, 0))
        return claimed.to_bytes(8, "little") + header + data[8 + size :]

    return Door(blobs, from_bytes, mutate)


def ckks_update_door(folder: Path) -> Door:
    """An owner sends a CKKS container; TenSEAL's own vectors can end the process when they are not checked first."""
    cohort = ckks_cohort.make_cohort(3)
    blobs = cohort.protect_all(cohort.updates())
    return Door(blobs, lambda data: cohort.add([data, *blobs[1:]], folder), spoil_bytes)


def ckks_total_door(folder: Path) -> Door:
    """An aggregator sends a CKKS total."""
    cohort = ckks_cohort.make_cohort(3)
    blobs = cohort.protect_all(cohort.updates())
    return Door([cohort.add(blobs, folder), blobs[0]], cohort.open, spoil_bytes)


def front_door(folder: Path) -> Door:
    """A datasite that was taken over speaks to the guard's own service."""
    from fastapi.testclient import TestClient  # with the guard, seconds of imports, for one door only

    from fl_privacy.guard.service import front_app
    from tests.guard.conftest import make_strongrooms

    (folder / "rooms").mkdir()
    rooms = make_strongrooms(folder / "rooms")
    guards, order = rooms.guards, rooms.order(round=7, code="0" * 64)  # two mistakes, so that no mutation starts a training
    closing = CloseRequest(order=order, receipts=(guards["bank"].enrolment.state().registry,), total="0" * 64)
    opening = OpenRequest(**dict(closing), survivors=closing.receipts, reveals=closing.receipts)
    messages = [message.canonical() for message in (order, closing, opening, *guards["bank"].enrolment.envelopes())]
    routes = [("POST", "orders"), ("POST", "closings"), ("POST", "reveals"), ("POST", "openings")]
    routes += [("PUT", "envelopes"), ("PUT", "registry")]
    client = TestClient(front_app(guards["clinic"]))

    def feed(data: bytes) -> None:
        method, path = routes[crc32(data) % len(routes)]
        if path == "openings":  # which the guard reads from its inbox
            digest = hashlib.sha256(data).hexdigest()
            client.put(f"/v1/blobs/{digest}", content=data)
            path, data = f"openings/{digest}", b""
        answer = client.request(method, f"/v1/{path}", content=data)
        if answer.status_code >= 500:
            raise RuntimeError(answer.text)
        if answer.status_code >= 400:
            raise MessageError(answer.text)

    keys = [rooms.key, *(guard.home.identity.signing_key for guard in guards.values())]
    return Door(messages, feed, _resigning({public_hex(key): key for key in keys}))


def _resigning(keys: Mapping[str, Ed25519PrivateKey]) -> Mutate:
    """Spoil JSON; half of the time inside something signed, which its rightful signer then signs again."""

    def mutate(draw: random.Random, messages: Sequence[bytes]) -> bytes:
        tree = json.loads(draw.choice(messages))
        signed = [node for node in _signed_in(tree) if node["signer"] in keys]
        if not signed or draw.random() < 0.5:
            return spoil_json(draw, messages)
        node = draw.choice(signed)
        donor = json.loads(draw.choice(signed)["body"])
        body = write_json(draw, spoil_tree(draw, json.loads(node["body"]), donor))
        node["body"] = body.decode("utf-8", "surrogatepass")
        node["signature"] = keys[node["signer"]].sign(b"fl_privacy/v1/" + node["kind"].encode() + b"\0" + body).hex()
        return json.dumps(tree).encode()

    return mutate


def _signed_in(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict) and tree.keys() == Signed.model_fields.keys():
        yield tree
    elif isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _signed_in(part)


def _keys(kept: SignedRound) -> dict[str, Ed25519PrivateKey]:
    """Everybody's signing key by its public half."""
    keys = [kept.cohort.scientist, *(identity.signing_key for identity in kept.cohort.identities.values())]
    return {public_hex(key): key for key in keys}


def _signed_plan(key: Ed25519PrivateKey) -> Signed:
    from tests.builders import tiny_bundle, tiny_plan  # seconds of imports, for two doors only

    return sign(tiny_plan(tiny_bundle()), key)


def _part(request: OpenRequest, kind: type[CloseRequest]) -> CloseRequest:
    """The request as far as a smaller kind knows it."""
    return kind(**{name: getattr(request, name) for name in kind.model_fields})


def _each(*checks: Callable[[], object]) -> None:
    """Make all checks; afterwards raise the last refusal, if there was one."""
    refusal = None
    for check in checks:
        try:
            check()
        except FlPrivacyError as error:
            refusal = error
    if refusal:
        raise refusal


DOORS: dict[str, Callable[[Path], Door]] = {
    "update": update_door,
    "total": total_door,
    "ckks-update": ckks_update_door,
    "ckks-total": ckks_total_door,
    "request": request_door,
    "evidence": evidence_door,
    "order": order_door,
    "cards": cards_door,
    "registry": registry_door,
    "sealed-key": sealed_key_door,
    "front": front_door,
    "plan": plan_door,
    "code": code_door,
    "safetensors": safetensors_door,
}
