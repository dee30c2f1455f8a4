"""``Federation`` for a server that must not block: the same calls, each in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fl_privacy.errors import HomeError
from fl_privacy.learning.models import ModelBundle
from fl_privacy.messages import Row
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.federation import Federation
from fl_privacy.scientist.history import History
from fl_privacy.scientist.views import Corpora, Owners, Preview, Statuses

Given = ParamSpec("Given")
Result = TypeVar("Result")


class AsyncFederation:
    """Wraps a ``Federation``; its calls wait for each other, since a desk is for one thread at a time.

    Use another connection to look at things while one is training. A call that is cancelled goes on in its thread to its end; a
    run that a server left behind is taken up by ``resume``.
    """

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self._turn = asyncio.Lock()

    @classmethod
    async def connect(cls, file: Path | str = "federation.toml") -> AsyncFederation:
        """As ``Federation.connect``, without a prompt for a password. Raises: HomeError where no password is found."""
        return cls(await asyncio.to_thread(Federation.connect, file, no_prompt))

    async def owners(self) -> Owners:
        """As ``Federation.owners``."""
        return await self._call(self.federation.owners)

    async def corpora(self) -> Corpora:
        """As ``Federation.corpora``."""
        return await self._call(self.federation.corpora)

    async def preview(self, plan: TrainingPlan, bundle: ModelBundle, like: Path | None = None) -> Preview:
        """As ``Federation.preview``."""
        return await self._call(self.federation.preview, plan, bundle, like)

    async def submit(self, plan: TrainingPlan, bundle: ModelBundle | None = None) -> dict[str, str]:
        """As ``Federation.submit``."""
        return await self._call(self.federation.submit, plan, bundle)

    async def status(self, plan: TrainingPlan) -> Statuses:
        """As ``Federation.status``."""
        return await self._call(self.federation.status, plan)

    async def run(
        self, plan: TrainingPlan, bundle: ModelBundle, validation: Sequence[Row], out: Path, **options: Any
    ) -> History:
        """As ``Federation.run``, with its options by name; the watcher is called in the thread."""
        return await self._call(self.federation.run, plan, bundle, validation, out, **options)

    async def resume(self, out: Path, **options: Any) -> History:
        """As ``Federation.resume``, with its options by name."""
        return await self._call(self.federation.resume, out, **options)

    async def close(self) -> None:
        """Close all connections when the call in hand is done."""
        await self._call(self.federation.close)

    async def __aenter__(self) -> AsyncFederation:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, step: Callable[Given, Result], *given: Given.args, **named: Given.kwargs) -> Result:
        async with self._turn:
            return await asyncio.to_thread(step, *given, **named)


def no_prompt(prompt: str) -> str:
    """Stands in for a prompt where nobody could answer."""
    raise HomeError(f"{prompt.rstrip(': ')} is neither in the environment, nor in a password_file, nor in a keyring")
