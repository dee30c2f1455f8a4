"""What a datasite refuses for its size or frequency, and that it refuses nobody who works at a normal pace."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.datasite import limits
from fl_privacy.datasite.limits import FREE_TRIES, LONGEST_WAIT, Buckets, Limits, LoginThrottle, Rate, address_of
from fl_privacy.errors import CredentialsRefused, TooLarge, TooManyRequests
from fl_privacy.scientist.desk import Desk


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(pauses=st.lists(st.floats(0, 3), max_size=80), rate=st.integers(1, 20), at_once=st.integers(1, 20))
def test_no_more_pass_than_the_rate_and_the_burst_allow(pauses: list[float], rate: int, at_once: int) -> None:
    clock = Clock()
    buckets, passed = Buckets("key", Rate(rate, at_once), clock), 0
    for pause in pauses:
        clock.now += pause
        try:
            buckets.take("ada")
            passed += 1
        except TooManyRequests as refusal:
            assert 0 < refusal.wait <= 1 / rate
    assert passed <= at_once + rate * sum(pauses) + 1e-6
    assert passed >= min(len(pauses), at_once)


def test_whoever_waits_as_long_as_told_is_answered() -> None:
    clock = Clock()
    buckets = Buckets("key", Rate(0.5, 1), clock)
    buckets.take("ada")
    with pytest.raises(TooManyRequests) as refusal:
        buckets.take("ada")
    buckets.take("bob")
    clock.now += refusal.value.wait
    buckets.take("ada")


def test_a_scientist_who_relays_for_a_hundred_owners_and_polls_a_job_never_waits() -> None:
    clock = Clock()
    keys, addresses = Buckets("key", limits.PER_KEY, clock), Buckets("address", limits.PER_ADDRESS, clock)
    for burst, pause in ((4 * 100, 0.01), (3 * 4 * 3600, 1 / 12)):  # cards, keys, signatures and words; then an hour of polling
        for _ in range(burst):
            clock.now += pause
            keys.take("ada")
            addresses.take("192.0.2.1")


def test_many_addresses_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEPT", 10)
    buckets, throttle = Buckets("address", limits.PER_ADDRESS), LoginThrottle()
    for number in range(100):
        buckets.take(str(number))
        throttle.wrong(str(number), str(number))
    assert len(buckets._left) == len(throttle._wrong) == 10


def guess(throttle: LoginThrottle, clock: Clock, address: str, email: str, tries: int) -> float:
    """Seconds that so many wrong log-ins take somebody who waits exactly as told."""
    began = clock.now
    for _ in range(tries):
        try:
            throttle.check(address, email)
        except TooManyRequests as refusal:
            clock.now += refusal.wait
            throttle.check(address, email)
        throttle.wrong(address, email)
    return clock.now - began


def test_a_few_typing_mistakes_cost_nothing_and_guesses_cost_more_each_time() -> None:
    clock = Clock()
    throttle = LoginThrottle(clock)
    assert guess(throttle, clock, "192.0.2.1", "ada@lab.org", FREE_TRIES["address and e-mail"]) == 0
    assert [guess(throttle, clock, "192.0.2.1", "ada@lab.org", 1) for _ in range(4)] == [1, 2, 4, 8]
    assert guess(throttle, clock, "192.0.2.1", "ada@lab.org", 100) > 90 * LONGEST_WAIT


def test_the_right_password_must_wait_too_but_not_from_elsewhere() -> None:
    clock = Clock()
    throttle = LoginThrottle(clock)
    guess(throttle, clock, "192.0.2.1", "ada@lab.org", 10)
    with pytest.raises(TooManyRequests, match="wrong log-ins; try again in 32 s"):
        throttle.check("192.0.2.1", "ada@lab.org")
    throttle.check("192.0.2.2", "ada@lab.org")
    throttle.check("192.0.2.1", "bob@lab.org")


def test_neither_many_e_mails_nor_many_addresses_nor_an_account_of_ones_own_buy_guesses() -> None:
    for who in (lambda n: ("192.0.2.1", f"{n}@lab.org"), lambda n: (f"192.0.2.{n}", "ada@lab.org")):
        clock = Clock()
        throttle = LoginThrottle(clock)
        waited = 0.0
        for number in range(120):
            waited += guess(throttle, clock, *who(number), 1)
            throttle.right("192.0.2.1", "mine@lab.org")
        assert waited > 10 * LONGEST_WAIT


def test_wrong_tries_are_forgotten_after_a_log_in_and_after_a_day() -> None:
    clock = Clock()
    throttle = LoginThrottle(clock)
    guess(throttle, clock, "192.0.2.1", "ada@lab.org", 5)
    throttle.right("192.0.2.1", "ada@lab.org")
    throttle.check("192.0.2.1", "ada@lab.org")
    guess(throttle, clock, "192.0.2.1", "ada@lab.org", 30)
    clock.now += limits.FORGOTTEN_AFTER
    throttle.check("192.0.2.1", "ada@lab.org")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("not an address", "not an address"),
    ],
)
def test_an_ipv6_customer_counts_as_one_address(host: str, name: str) -> None:
    assert address_of({"client": (host, 1)}) == name
    assert address_of({"client": None}) == "unknown"


@pytest.fixture
def small() -> Iterator[TestClient]:
    app = FastAPI()

    @app.post("/{path:path}")
    async def length(request: Request) -> int:
        return len(await request.body())

    app.add_middleware(Limits, addresses=Buckets("address", Rate(0.1, 12)))
    with TestClient(app) as client:
        yield client


PATHS = {
    "/api/v2/login": limits.LOGIN_BYTES,
    "/api/v2/api_call": limits.CALL_BYTES,
    "/fl/v1/registry": limits.JSON_BYTES,
    "/anything": limits.JSON_BYTES,
}


@pytest.mark.parametrize(("path", "limit"), PATHS.items(), ids=PATHS)
def test_a_body_may_be_as_large_as_its_route_takes_and_no_larger(small: TestClient, path: str, limit: int) -> None:
    assert small.post(path, content=bytes(limit)).json() == limit
    announced = small.post(path, content=bytes(limit + 1))
    streamed = small.post(path, content=(bytes(limit + 1) for _ in range(1)))
    for refusal in (announced, streamed):
        assert (refusal.status_code, refusal.json()["error"]) == (413, "TooLarge")


def test_an_address_that_asks_too_often_gets_429_and_is_told_when_to_come_back(small: TestClient) -> None:
    answers = [small.post("/x") for _ in range(13)]
    assert [answer.status_code for answer in answers] == [200] * 12 + [429]
    assert answers[-1].json()["error"] == "TooManyRequests"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 10


@pytest.mark.end_to_end
def test_guessing_a_password_gets_429_and_the_session_of_the_scientist_goes_on(datasite: Any, invited: Any, desk: Desk) -> None:
    for _ in range(FREE_TRIES["address and e-mail"]):
        with pytest.raises(CredentialsRefused):
            Desk.login("alba", datasite.url, invited[0], "a guess")
    with pytest.raises(TooManyRequests, match="try again in 1 s"):
        Desk.login("alba", datasite.url, invited[0], invited[1])
    answer = requests.post(f"{datasite.url}/api/v2/login", json={"email": invited[0], "password": "x"}, timeout=10)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert desk.relay.info() == {"owner": "alba"}
    assert invited[0] not in datasite.log.read_text()


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"email": 1, "password": []}', b'{"email": "\\ud800", "password": ""}', b"\xff"]
)
def test_a_malformed_log_in_is_a_typed_refusal(datasite: Any, body: bytes) -> None:
    answer = requests.post(f"{datasite.url}/api/v2/login", data=body, timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (400, "MessageError")


@pytest.mark.end_to_end
@pytest.mark.parametrize("password", ["x" * 100, "nul\0", "ä" * 72])
def test_a_password_that_the_hash_cannot_take_is_only_wrong(datasite: Any, password: str) -> None:
    with pytest.raises(CredentialsRefused):
        Desk.login("alba", datasite.url, f"{len(password)}@lab.example.org", password)


@pytest.mark.end_to_end
def test_the_real_datasite_refuses_large_bodies_and_long_heads(datasite: Any, desk: Desk) -> None:
    for path in ("login", "api_call"):
        answer = requests.post(f"{datasite.url}/api/v2/{path}", data=bytes(limits.CALL_BYTES + 1), timeout=10)
        assert (answer.status_code, answer.json()["error"]) == (413, "TooLarge")
    with socket.create_connection(("127.0.0.1", int(datasite.url.rpartition(":")[2])), timeout=10) as client:
        client.sendall(b"GET /api/v2/metadata HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000)  # and no end
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    with pytest.raises(TooLarge):
        desk.relay._call("PUT", "/v1/registry", bytes(limits.JSON_BYTES + 1))
