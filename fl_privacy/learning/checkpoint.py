"""Where a run without privacy stands, in one file that is replaced as a whole, so that a run can be stopped and go on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from fl_privacy.errors import ModelError

EVERY = 200  # steps between two writings


@dataclass(frozen=True)
class Checkpoint:
    """One file. A run that goes on from it ends with the very weights of one that was never stopped.

    Args: settings name the run (a plan's digest).
    """

    path: Path
    settings: str

    def keep(
        self, step: int, model: PreTrainedModel, optimizer: Optimizer, schedule: LRScheduler, generator: np.random.Generator
    ) -> None:
        """Write all that the next steps depend on, if it is time to."""
        if step % EVERY:
            return
        partial = self.path.with_suffix(".partial")
        torch.save(
            {
                "settings": self.settings,
                "step": step,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": json.dumps(generator.bit_generator.state),
                "dropout": torch.get_rng_state(),
                "dropout_on_gpu": torch.cuda.get_rng_state(model.device) if model.device.type == "cuda" else None,
            },
            partial,
        )
        partial.replace(self.path)

    def restore(
        self, model: PreTrainedModel, optimizer: Optimizer, schedule: LRScheduler, generator: np.random.Generator
    ) -> int:
        """Set everything to where the file stands; returns the steps done, 0 without a file.

        Raises: ModelError when the file is damaged or belongs to a run with other settings.
        """
        if not self.path.exists():
            return 0
        try:
            kept = torch.load(self.path, map_location="cpu", weights_only=True)  # data only: nothing in the file is run
            settings = kept["settings"]
        except (OSError, RuntimeError, UnpicklingError, EOFError, KeyError, TypeError) as problem:
            raise ModelError(f"{self.path} is no checkpoint ({type(problem).__name__}); delete it to start anew") from None
        if settings != self.settings:
            raise ModelError(f"{self.path} belongs to a run with other settings; take another folder, or delete it")
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        generator.bit_generator.state = json.loads(kept["generator"])
        torch.set_rng_state(kept["dropout"])
        if model.device.type == "cuda" and kept["dropout_on_gpu"] is not None:
            torch.cuda.set_rng_state(kept["dropout_on_gpu"], model.device)
        return int(kept["step"])
