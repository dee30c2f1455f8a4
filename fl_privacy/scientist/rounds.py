"""One attempt at one round: order it everywhere, add the ciphertexts blindly, have the sum opened."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.registry import Registry, verify_receipts
from fl_privacy.errors import ConnectionFailed, FlPrivacyError, MessageError, RoundFailed
from fl_privacy.messages import OpenedSum, OpenRequest, RoundOrder, Signed, UpdateReceipt, open_signed
from fl_privacy.parameters import Parameters, Vector, count, unflatten
from fl_privacy.scientist.desk import Desk

OnStep = Callable[[str, int, int], None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Opened:
    """A round's outcome: the mean update over the cohort, the receipts, and what it cost."""

    mean: Parameters
    receipts: tuple[UpdateReceipt, ...]
    ciphertext_bytes: int  # of the largest encrypted update, as it arrived
    bytes_up: int
    bytes_down: int
    seconds_training: float
    seconds_crypto: float
    seconds_total: float


def run_round(
    desks: Mapping[str, Desk],
    function: str,
    order: Signed,
    blobs: Sequence[bytes],
    registry: Registry,
    timeout: float,
    on_step: OnStep,
) -> Opened:
    """Carry one signed order through.

    Args: ``function`` is the approved code's name; ``blobs`` are what the owners need (model, vocabulary); ``timeout`` in
    seconds per owner, after which that owner has failed. Raises: RoundFailed that names every owner at fault; the other
    owners' work is kept by their guards and is never opened.
    """
    ordered = RoundOrder.parse(order.body)
    clock, wire_before = time.perf_counter(), _wire(desks, ordered.cohort)
    work = {
        owner: lambda desk=desks[owner]: _train_at(desk, function, order, blobs, timeout, on_step) for owner in ordered.cohort
    }
    receipts = _everywhere(work, ordered.round)
    verified = verify_receipts(ordered, [receipts[owner] for owner in ordered.cohort], registry)
    fetch = {
        receipt.owner: lambda desk=desks[receipt.owner], digest=receipt.ciphertext: desk.relay.get_blob(digest)
        for receipt in verified
    }
    ciphertexts = _everywhere(fetch, ordered.round)
    adding = time.perf_counter()
    total = add_updates((ciphertexts[owner] for owner in ordered.cohort), ordered)
    adding = time.perf_counter() - adding
    request = OpenRequest(
        order=order, receipts=tuple(receipts[owner] for owner in ordered.cohort), total=hashlib.sha256(total).hexdigest()
    )
    opened, values = _open_at(desks, function, request, total, ordered, registry, timeout)
    up, down = (after - before for after, before in zip(_wire(desks, ordered.cohort), wire_before, strict=True))
    return Opened(
        mean=unflatten(values, ordered.tensors),
        receipts=verified,
        ciphertext_bytes=max(map(len, ciphertexts.values())),
        bytes_up=up,
        bytes_down=down,
        seconds_training=max(receipt.training_seconds for receipt in verified),
        seconds_crypto=max(receipt.encryption_seconds for receipt in verified) + adding + opened.decryption_seconds,
        seconds_total=time.perf_counter() - clock,
    )


def _everywhere(work: Mapping[str, Callable[[], Result]], round_index: int) -> dict[str, Result]:
    results: dict[str, Result] = {}
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=len(work)) as pool:
        futures = {owner: pool.submit(step) for owner, step in work.items()}
        for owner, future in futures.items():
            try:
                results[owner] = future.result()
            except FlPrivacyError as error:
                failures[owner] = f"{type(error).__name__}: {error}"
    if failures:
        raise RoundFailed(round_index, failures)
    return results


def _train_at(desk: Desk, function: str, order: Signed, blobs: Sequence[bytes], timeout: float, on_step: OnStep) -> Signed:
    for blob in blobs:
        desk.relay.put_blob(blob)
    task = {"action": "train", "message": order.canonical().decode()}
    try:
        answer = desk.run(function, task, timeout, lambda step, steps: on_step(desk.owner, step, steps))
    except ConnectionFailed:
        # the guard may well have finished: the same order again is answered from its stored result, at no further spend
        answer = desk.run(function, task, timeout, lambda step, steps: on_step(desk.owner, step, steps))
    return Signed.model_validate(answer)


def _open_at(
    desks: Mapping[str, Desk],
    function: str,
    request: OpenRequest,
    total: bytes,
    order: RoundOrder,
    registry: Registry,
    timeout: float,
) -> tuple[OpenedSum, Vector]:
    """The sum, opened by the first owner of the cohort that answers."""
    failures: dict[str, str] = {}
    for owner in order.cohort:
        desk = desks[owner]
        try:
            desk.relay.put_blob(total)
            task = {"action": "open", "message": request.canonical().decode()}
            answer = Signed.model_validate(desk.run(function, task, timeout, lambda step, steps: None))
            opened = open_signed(answer, OpenedSum, registry.card(owner).signing_key)
            if (opened.order, opened.total) != (order.digest(), request.total):
                raise MessageError("the opened sum is not the one that was asked for")
            values = np.frombuffer(desk.relay.get_blob(opened.values), dtype="<f4")
            if values.shape != (count(order.tensors),):
                raise MessageError(f"the opened sum has {values.size} coordinates, the order has {count(order.tensors)}")
            return opened, values
        except FlPrivacyError as error:
            failures[owner] = f"{type(error).__name__}: {error}"
    raise RoundFailed(order.round, failures)


def _wire(desks: Mapping[str, Desk], cohort: Sequence[str]) -> tuple[int, int]:
    return (
        sum(desks[owner].relay.bytes_received for owner in cohort),
        sum(desks[owner].relay.bytes_sent for owner in cohort),
    )
