"""Desks that publish and remember, without a datasite behind them."""

from __future__ import annotations

from typing import Any

from fl_privacy.errors import KeyMissing
from fl_privacy.messages import CorpusCard, Row
from fl_privacy.scientist.views import RequestState
from tests.builders import texts


class FakeDesk:
    """A desk that publishes mock rows and keeps what it was asked; it is its own relay, of an owner that is not enrolled."""

    def __init__(self, owner: str, title: str = "") -> None:
        self.owner, self.title, self.asked = owner, title, list[str]()
        self.url, self.email, self.relay = f"http://{owner}.example.org", "ada@lab.example.org", self
        self.state = RequestState("pending")

    def corpora(self) -> list[CorpusCard]:
        rows = tuple(Row(text=text) for text in texts(5, seed=len(self.owner)))
        fields: dict[str, Any] = {"description": "", "corpus": "0" * 64, "declared_size": 990, "mock_rows": rows}
        return [CorpusCard(owner=self.owner, title=self.title, **fields)]

    def submit(self, code: str, name: str) -> str:
        self.asked.append(code)
        return "1"

    def request_state(self, request: str) -> RequestState:
        return self.state

    def info(self) -> dict[str, Any]:
        return {"owner": self.owner, "title": self.title}

    def registry(self) -> bytes:
        raise KeyMissing(f"{self.owner} has not enrolled")

    def close(self) -> None:
        self.asked.append("close")
