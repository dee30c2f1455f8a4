"""What a guard keeps of each order: one folder, whose files alone say how far the order has come.

order.json    admitted; the first file                  update.f32     trained update, until closed, failed or superseded
receipt.json  sealed; the last file of training         self-mask.key  b_k, until failed or superseded unclosed
error.json    failed                                    closing.json   closed: the sum that a survivor list is signed for
opening.json  written before the sum is decrypted       opened.json, opening-error.json    how that ended
control.safetensors  c_k after it (``guard.control_variates``), while a later order may name it
own-layers.safetensors, memory.f32  what this owner carries on from it (``guard.carried``)
revoked.json  dead for good, whatever is approved later stopped.json   the owner ended its training

Whatever is found after a crash is therefore finished, failed, or still to be closed; nothing is trained or paid for twice.
"""

from __future__ import annotations

import re
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from fl_privacy.durable_files import disk_problems_named, sync_folder, write_atomically, write_json
from fl_privacy.errors import HomeError, MessageError
from fl_privacy.messages import CloseRequest, Signed
from fl_privacy.round_order import RoundOrder

CONTROL, OWN_LAYERS, MEMORY = CARRIED = ("control.safetensors", "own-layers.safetensors", "memory.f32")


@dataclass(frozen=True)
class OrderFolder:
    """The files of one order; ``path.name`` is the order's digest."""

    path: Path

    @property
    def digest(self) -> str:
        """R_t."""
        return self.path.name

    @property
    def order(self) -> RoundOrder:
        """The order, whose signature was checked when it was admitted."""
        return RoundOrder.parse(Signed.parse((self.path / "order.json").read_bytes()).body)

    @property
    def update(self) -> Path:
        """The trained update, little-endian float32: differentially private, yet for the sums of this guard's orders only."""
        return self.path / "update.f32"

    @property
    def control(self) -> Path:
        """This owner's control variate after the order; like the update, for this guard's sums only."""
        return self.path / CONTROL

    @property
    def own_layers(self) -> Path:
        """The layers and head that stay with this owner, after the order; differentially private, and never sent."""
        return self.path / OWN_LAYERS

    @property
    def self_mask(self) -> Path:
        """The 32 bytes of b_k."""
        return self.path / "self-mask.key"

    @property
    def is_sealed(self) -> bool:
        """Whether this owner has signed a receipt."""
        return (self.path / "receipt.json").exists()

    @property
    def is_closed(self) -> bool:
        """Whether this owner has signed, or is about to sign, a survivor list."""
        return (self.path / "closing.json").exists()

    @property
    def has_failed(self) -> bool:
        """Whether its training or sealing failed."""
        return (self.path / "error.json").exists()

    @property
    def is_opened(self) -> bool:
        """Whether this owner has opened the sum."""
        return (self.path / "opened.json").exists()

    @property
    def is_revoked(self) -> bool:
        """Whether the owner took the approval back before the sum was opened."""
        return (self.path / "revoked.json").exists()

    @property
    def is_stopped(self) -> bool:
        """Whether the owner ended its training."""
        return (self.path / "stopped.json").exists()

    @property
    def receipt(self) -> Signed:
        """This owner's receipt of a sealed order."""
        return Signed.parse((self.path / "receipt.json").read_bytes())

    @property
    def closing(self) -> CloseRequest:
        """What a closed order was closed for."""
        return CloseRequest.parse((self.path / "closing.json").read_bytes())

    def create(self, signed: Signed) -> None:
        """Admit the order: from now on it is the latest of its plan."""
        with disk_problems_named(self.path):
            self.path.mkdir(mode=0o700)
            sync_folder(self.path.parent)
        try:
            write_atomically(self.path / "order.json", signed.canonical())
        except HomeError:
            self.remove()
            raise

    def remove(self) -> None:
        """Take an admission back, before anything was paid or trained."""
        shutil.rmtree(self.path)

    def new_self_mask(self) -> bytes:
        """Draw b_k, which is of use for this order only, and keep it. Privacy: never leaves but by ``Closing.reveal``."""
        seed = secrets.token_bytes(32)
        write_atomically(self.self_mask, seed)
        return seed

    def close(self, request: CloseRequest) -> None:
        """Write down what the survivor list is signed for, before it is signed."""
        write_atomically(self.path / "closing.json", request.canonical())

    def stop(self, reason: str) -> None:
        """Write down that the owner ended its training."""
        write_json(self.path / "stopped.json", {"reason": reason})

    def revoke(self, reason: str) -> None:
        """Never close, reveal or open this order, and delete what only that or later orders could need.

        Once it is opened, only what this owner carries on from it goes.
        """
        for name in CARRIED:
            (self.path / name).unlink(missing_ok=True)
        if not self.is_opened:
            write_json(self.path / "revoked.json", {"reason": reason})
            self.update.unlink(missing_ok=True)
            self.self_mask.unlink(missing_ok=True)

    def forget_secrets(self) -> None:
        """Delete the update, and the self-mask of an order that was never closed and so can never be revealed."""
        self.update.unlink(missing_ok=True)
        if not self.is_closed:
            self.self_mask.unlink(missing_ok=True)


class Orders:
    """All orders of one guard. Hold ``lock`` while the latest order of a plan may change, or is relied on not to."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "rounds"
        self.lock = threading.Lock()
        self._clean_up()

    def folder(self, digest: str) -> OrderFolder:
        """Where an order's files are or will be. Raises: MessageError when that is no digest."""
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise MessageError("an order is named by its digest in lower-case hex")
        return OrderFolder(self._folder / digest)

    def of_plan(self, plan: str) -> list[OrderFolder]:
        """The admitted orders of a plan (digest), the latest last."""
        return self._by_plan().get(plan, [])

    def before(self, folder: OrderFolder) -> list[OrderFolder]:
        """The other orders of an order's plan, all earlier as long as it is the latest; the latest of them last."""
        return [other for other in self.of_plan(folder.order.plan) if other != folder]

    def latest(self) -> list[OrderFolder]:
        """The latest order of each plan."""
        return [folders[-1] for folders in self._by_plan().values()]

    def all(self) -> list[OrderFolder]:
        """Every admitted order, in no order."""
        return [folder for folder in self._folders() if (folder.path / "order.json").exists()]

    def is_superseded(self, folder: OrderFolder) -> bool:
        """Whether a later order of the same plan was admitted: then nothing is signed for this one any more."""
        return self.of_plan(folder.order.plan)[-1] != folder

    def _by_plan(self) -> dict[str, list[OrderFolder]]:
        admitted = [(folder.order, folder) for folder in self.all()]
        plans: dict[str, list[OrderFolder]] = {}
        for order, folder in sorted(admitted, key=lambda pair: pair[0].turn):
            plans.setdefault(order.plan, []).append(folder)
        return plans

    def _folders(self) -> list[OrderFolder]:
        return [OrderFolder(path) for path in self._folder.iterdir()]

    def _clean_up(self) -> None:
        """After a crash: only an order that is sealed, unclosed and the latest of its plan still needs its update."""
        latest = self.latest()
        for folder in self._folders():
            if not (folder.path / "order.json").exists():
                folder.remove()  # it was being admitted: nothing was paid, and the same order may come again
            elif folder not in latest or not folder.is_sealed or folder.is_closed:
                folder.forget_secrets()


def move_update(source: OrderFolder, target: OrderFolder) -> None:
    """Give a trained update to a later order. Moved, so that it is never in two orders at once."""
    with disk_problems_named(target.update):
        for name in (OWN_LAYERS, MEMORY):
            if (source.path / name).exists():
                (source.path / name).rename(target.path / name)
        source.update.rename(target.update)
