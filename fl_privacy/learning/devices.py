"""Where a training computes: the owner's choice, which no plan knows of and no accountant needs to know."""

from __future__ import annotations

from typing import Literal

import torch

from fl_privacy.errors import HomeError, OrderFailed

Device = Literal["cpu", "cuda"]
Place = torch.device  # for rooms that do not import torch


def resolve(wanted: str, processes: int = 1) -> Device:
    """What ``auto``, ``cpu`` or ``cuda`` means on this machine.

    ``auto`` is a GPU where torch finds one. Counting GPUs does not start their driver in this process.
    Raises: HomeError when there are fewer GPUs than processes that would need one each.
    """
    found = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and not found):
        return "cpu"
    if not found:
        raise HomeError(
            f'device = "{wanted}": torch {torch.__version__} finds no GPU here; install a torch that is built for CUDA, and the'
            ' driver, or choose device = "cpu"'
        )
    if found < processes:
        raise HomeError(
            f'processes = {processes} with device = "{wanted}": each process needs a GPU of its own, and torch finds {found}'
            f' here; choose processes = {found}, or device = "cpu"'
        )
    return "cuda"


def start(device: Device, rank: int = 0, processes: int = 1) -> Place:
    """Make one of several processes ready to compute, before it is locked in: a GPU's driver opens its files here.

    Raises: OrderFailed when the GPU cannot be used.
    """
    if device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
        return Place("cpu")
    torch.set_float32_matmul_precision("highest")  # clipping measures norms; TF32 would make them wrong by a thousandth
    place = Place("cuda", rank)
    if torch.cuda.device_count() <= rank:
        raise OrderFailed(f"GPU {rank} cannot be used: torch finds {torch.cuda.device_count()} GPUs; send a new attempt")
    try:
        torch.cuda.set_device(place)
        square = torch.eye(2, device=place, requires_grad=True)
        (square @ square).sum().backward()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(place)
    except RuntimeError as problem:
        raise OrderFailed(f"GPU {rank} cannot be used: {str(problem).splitlines()[0]}") from None  # of no row yet
    return place
