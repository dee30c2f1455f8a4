"""An order's way to a sealed update: admit, pay and train, or take over an update that was paid for; protect; sign.

An update is trained and paid for once. While no survivor list was signed for it, a later attempt at the same round takes it
over and protects it with fresh masks; the attempt that it came from is dead from then on (``guard.closing`` refuses it).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fl_privacy.durable_files import write_atomically, write_json
from fl_privacy.encryption.agreement import commit
from fl_privacy.encryption.secret_sum import protect_update
from fl_privacy.errors import FlPrivacyError, OrderFailed, OrderRefused, to_wire
from fl_privacy.guard import sandbox, worker
from fl_privacy.guard.admission import check_order, check_paid_for, decision_for, key_of, order_spend
from fl_privacy.guard.approvals import Approvals
from fl_privacy.guard.blobs import Blobs
from fl_privacy.guard.carried import check_map, compress, forget_older
from fl_privacy.guard.control_variates import advance, check_control, forget_others, own_control, same_controls
from fl_privacy.guard.corpus import card_of, check_digest
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.order_job import job_of
from fl_privacy.guard.orders import OrderFolder, Orders, move_update
from fl_privacy.guard.policy import check_scientist
from fl_privacy.learning.devices import Device
from fl_privacy.learning.local_evaluation import STEPS
from fl_privacy.messages import Signed, UpdateReceipt, sign
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.entries import Spend
from fl_privacy.round_order import RoundOrder

_log = logging.getLogger(__name__)

PATIENCE = 0.5  # seconds after which an order that waits for its turn looks whether it is still wanted


class Rounds:
    """The orders of one guard, from admission to receipt."""

    def __init__(
        self,
        home: GuardHome,
        approvals: Approvals,
        blobs: Blobs,
        orders: Orders,
        isolation: sandbox.Isolation,
        device: Device,
    ) -> None:
        self.home, self.approvals, self.blobs, self.orders, self.isolation = home, approvals, blobs, orders, isolation
        self._device = device
        self._training = threading.Lock()  # one training at a time: the machine has one accelerator's worth of memory
        self._steps: dict[str, tuple[int, int]] = {}  # orders that are in work now
        self._pids: dict[str, int] = {}
        self._stopped: dict[str, str] = {}  # orders in work that the owner has stopped, and why

    def place(self, signed: Signed) -> dict[str, Any]:
        """Admit an order and start it; the same order again only reports its state. Earlier orders of the plan are dead then.

        Raises: AdmissionError, BudgetExceeded, SignatureInvalid, KeyMissing: nothing was reserved, trained or superseded.
        Privacy: reserves the spend before the first gradient, but for an update that an earlier attempt has paid for.
        """
        order, decision = decision_for(signed, self.approvals)
        folder = self.orders.folder(order.digest())
        with self.orders.lock:
            if folder.path.exists():
                return self.state(folder.digest)
            earlier = self.orders.of_plan(order.plan)
            past_orders = [past.order for past in earlier]
            plan = check_order(order, decision, self.home, past_orders, self.blobs.inbox, self.isolation)
            check_control(order, plan, self.home.owner, earlier, self.blobs.inbox)
            check_map(order, plan, self.blobs.inbox)
            spend = None
            if source := reusable(order, earlier):
                folder.create(signed)
                move_update(source, folder)
            else:
                spend = self._pay(folder, signed, order, plan, earlier)
            for past in earlier:
                self._abandon(past)
            forget_others(order, self.home.owner, earlier)
            forget_older(earlier)
            self._steps[folder.digest] = (0, plan.local_steps if order.purpose == "train" else STEPS)
        threading.Thread(target=self._work, args=(folder, order, plan, spend), name=f"order-{folder.digest[:8]}").start()
        return self.state(folder.digest)

    def state(self, digest: str) -> dict[str, Any]:
        """``state`` (training, sealed, failed), ``step``, ``steps``, ``receipt``, ``error``. Raises: OrderRefused."""
        folder = self.orders.folder(digest)
        if not folder.path.exists():
            raise OrderRefused(f"order {digest[:16]}… was never admitted here")
        answer: dict[str, Any] = {"digest": digest, "state": "failed", "step": 0, "steps": 0, "receipt": None, "error": None}
        steps = self._steps.get(digest)  # read before the files: the receipt is written before the order leaves _steps
        failed = folder.path / "error.json"
        if folder.is_revoked:
            answer["error"] = to_wire(OrderFailed("the owner revoked its approval; this order is dead, and its spend stays"))
        elif folder.is_sealed:
            answer |= {"state": "sealed", "receipt": folder.receipt.model_dump(mode="json")}
        elif failed.exists():
            answer["error"] = json.loads(failed.read_bytes())
        elif steps is not None:
            answer |= {"state": "training", "step": steps[0], "steps": steps[1]}
        else:
            told = "the guard stopped, or its disk failed, in the middle of this order; what was spent stays spent"
            interrupted = OrderFailed(f"{told}; send a new attempt")
            answer["error"] = to_wire(interrupted)
        return answer

    def stop_order(self, digest: str, reason: str) -> None:
        """End an order's training; it fails and is voided, and its spend stays. Raises: OrderRefused when it is not in work."""
        with self.orders.lock:
            folder = self.orders.folder(digest)
            if digest not in self._steps or folder.is_sealed:
                raise OrderRefused(f"order {digest[:16]}… is not in training here; to keep a sealed one shut, revoke its plan")
            folder.stop(reason)
            self._stop(digest, f"stopped by the owner: {reason}")

    def withdraw(self, plan: str, reason: str) -> None:
        """Make all unopened orders of a plan (digest) dead for good and end their training. Hold ``orders.lock``."""
        for folder in self.orders.of_plan(plan):
            if folder.digest in self._steps:
                self._stop(folder.digest, f"revoked by the owner: {reason}")
            folder.revoke(reason)

    def stop(self) -> None:
        """Kill running workers; their orders are found failed at the next start."""
        for digest in list(self._pids):
            self._kill_worker(digest)

    def _pay(
        self, folder: OrderFolder, signed: Signed, order: RoundOrder, plan: TrainingPlan, earlier: Sequence[OrderFolder]
    ) -> Spend:
        """Admit an order that needs work. Raises: OrderRefused, BudgetExceeded, CorpusError; then it is not admitted."""
        ledger = self.home.ledger
        check_paid_for(order, plan, [past.order for past in earlier if past.digest in ledger.orders])
        check_digest(self.home)
        spend = order_spend(order, plan, card_of(self.home).declared_size)
        check_scientist(self.home, signed.signer, spend)
        folder.create(signed)
        try:
            ledger.reserve(folder.digest, plan.digest(), spend)
        except FlPrivacyError:
            if folder.digest not in ledger.orders:  # else it is paid for, and only what follows the entry went wrong
                folder.remove()
            raise
        return spend

    def _abandon(self, folder: OrderFolder) -> None:
        """A later order was admitted: this one will never be closed, and what it still trains would be of no use."""
        self._kill_worker(folder.digest)
        folder.forget_secrets()

    def _stop(self, digest: str, reason: str) -> None:
        self._stopped[digest] = reason[:500]
        self._kill_worker(digest)

    def _kill_worker(self, digest: str) -> None:
        try:
            if digest in self._pids:
                os.kill(self._pids[digest], signal.SIGKILL)
        except (KeyError, ProcessLookupError):
            return  # it has just ended by itself

    def _work(self, folder: OrderFolder, order: RoundOrder, plan: TrainingPlan, spend: Spend | None) -> None:
        try:
            with self._turn(folder):
                seconds = self._train(folder, order, plan, spend) if spend else 0.0
                self._seal(folder, order, plan, seconds)
        except FlPrivacyError as error:
            if not folder.is_sealed:  # else only the disk's last word on the receipt was bad
                self._fail(folder, error)
        finally:
            for told in (self._steps, self._pids, self._stopped):
                told.pop(folder.digest, None)

    def _fail(self, folder: OrderFolder, error: FlPrivacyError) -> None:
        """Write down how an order ended; a disk that does not take it leaves the order as after a crash."""
        folder.forget_secrets()
        stopped = self._stopped.get(folder.digest)
        try:
            if self.home.ledger.orders.get(folder.digest) == "reserved":
                self.home.ledger.void(folder.digest, stopped or type(error).__name__)
            write_json(folder.path / "error.json", to_wire(OrderFailed(f"{stopped}; its spend stays") if stopped else error))
        except FlPrivacyError as problem:
            _log.error("order %s failed (%s), which could not be written down: %s", folder.digest[:8], error, problem)

    @contextmanager
    def _turn(self, folder: OrderFolder) -> Iterator[None]:
        """Wait for the machine. Raises: OrderFailed when the order is no longer wanted, also while it waits."""
        while not self._training.acquire(timeout=PATIENCE):
            self._check_current(folder)
        try:
            self._check_current(folder)
            yield
        finally:
            self._training.release()

    def _train(self, folder: OrderFolder, order: RoundOrder, plan: TrainingPlan, spend: Spend) -> float:
        """Leave the trained update in the order's folder; returns seconds."""
        clock, home = time.perf_counter(), self.home
        job = job_of(folder, order, plan, spend, home, self.orders, self.blobs.inbox, self._device)
        worker.run(
            job,
            lambda step, steps: self._steps.__setitem__(folder.digest, (step, steps)),
            lambda pid: self._started(folder, pid),
        )
        self._pids.pop(folder.digest, None)
        compress(folder, plan, home.owner, self.orders.before(folder), self.blobs.inbox)
        return time.perf_counter() - clock

    def _started(self, folder: OrderFolder, pid: int) -> None:
        self._pids[folder.digest] = pid
        if folder.digest in self._stopped or self.orders.is_superseded(folder):  # before its pid was known
            self._kill_worker(folder.digest)

    def _seal(self, folder: OrderFolder, order: RoundOrder, plan: TrainingPlan, training_seconds: float) -> None:
        """Protect the update for this order, once, and sign the receipt."""
        clock, home = time.perf_counter(), self.home
        spend = order_spend(order, plan, order.weights[order.cohort.index(home.owner)])
        with self.orders.lock:
            self._check_current(folder)  # or the update may have been deleted
            update, self_mask = np.fromfile(folder.update, "<f4"), b""
            if order.control:
                own = own_control(order, home.owner, self.orders)
                update = advance(folder, plan, home.owner, update, own, self.blobs.inbox)
        committed = None
        if order.encoding.scheme != "ckks":
            self_mask = folder.new_self_mask()
            committed = commit(self_mask, folder.digest, home.owner)
        key, registry = key_of(order, home), home.registry
        ciphertext, size = self.blobs.publish(
            lambda file: protect_update(update, order, home.owner, home.identity, registry, key, self_mask, file)
        )
        seconds = time.perf_counter() - clock
        with self.orders.lock:
            self._check_current(folder)
            if folder.digest in home.ledger.orders:
                home.ledger.commit(folder.digest)
            statement = home.ledger.statement()
            receipt = UpdateReceipt(
                order=folder.digest,
                owner=home.owner,
                ciphertext=ciphertext,
                self_mask=committed,
                ciphertext_bytes=size,
                training_seconds=float(round(training_seconds)),  # coarse: it depends a little on how long the records are
                encryption_seconds=seconds,
                epsilon_spent=statement.epsilon_spent,
                epsilon_budget=statement.epsilon_budget,
                delta=statement.delta,
                ledger_head=statement.head,
                period_days=statement.period_days,
                epsilon_in_period=statement.epsilon_in_period,
                noise_multiplier=spend.noise_multiplier,
            )
            write_atomically(folder.path / "receipt.json", sign(receipt, home.identity.signing_key).canonical())

    def _check_current(self, folder: OrderFolder) -> None:
        if folder.digest in self._stopped:
            raise OrderFailed(self._stopped[folder.digest])
        if self.orders.is_superseded(folder):
            raise OrderFailed("a later order of the plan was placed before this one was sealed; its spend stays")


def reusable(order: RoundOrder, earlier: Sequence[OrderFolder]) -> OrderFolder | None:
    """The earlier order whose trained update ``order`` may take over at no cost, if there is one.

    Only the last one, at the same round, for the same purpose, from the same model, and only while no survivor list was signed
    for its update: then its self-mask will never be revealed, and what it sent stays uniformly random to everybody.
    """
    if not earlier:
        return None
    last, past = earlier[-1], earlier[-1].order
    is_same_work = (past.turn[:2], past.model, past.tensors) == (order.turn[:2], order.model, order.tensors)
    is_same_work = is_same_work and same_controls(order, past) and order.compression == past.compression
    return last if is_same_work and last.is_sealed and not last.is_closed and last.update.exists() else None
