"""One browser page of a session: frame, language, calls to the owner, notices, and questions before anything is done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from nicegui import ui

from fl_privacy.console import parts
from fl_privacy.console.desk import Desk
from fl_privacy.console.login import Doorkeeper, Session
from fl_privacy.console.words import say
from fl_privacy.errors import CredentialsRefused, FlPrivacyError

TABS = {"requests": "inbox", "budget": "data_usage", "ledger": "receipt_long", "jobs": "play_circle", "owners": "groups"}
CONNECT_SECONDS = 30.0
CSS = (Path(__file__).parent / "console.css").read_text(encoding="utf-8")

P = ParamSpec("P")
T = TypeVar("T")
Draw = Callable[["Visit"], Awaitable[None]]
MOST_DAYS = 36_500  # that the guard lets an approval hold


@dataclass(frozen=True)
class Question:
    """What a dialog asks for besides a yes; ``complaint`` says what is wrong with an answer, None if nothing is."""

    label: str
    complaint: Callable[[str], str | None]
    value: str = ""
    keyboard: Literal["text", "numeric"] = "text"


class Visit:
    """A page being shown. ``draw`` of a page asks first, then draws into ``fresh()``."""

    def __init__(self, desk: Desk, doorkeeper: Doorkeeper, session: Session, path: str) -> None:
        self.desk = desk
        self._doorkeeper, self._session, self._path = doorkeeper, session, path
        self._draw: Draw | None = None
        self.status: Mapping[str, Any] = {}  # the guard at a glance, as of the last drawing

    @property
    def paused(self) -> str | None:
        """The reason why the datasite takes no orders, if it takes none."""
        return self.status.get("paused")

    def say(self, key: str, **values: object) -> str:
        """A label in the session's language."""
        return say(self._session.language, key, **values)

    async def ask(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the desk, as long as the session counts. Raises: CredentialsRefused, and what the call raises."""
        if not self._doorkeeper.open(self._session):
            raise CredentialsRefused(self.say("ended"))
        return await call(*args, **kwargs)

    async def act(self, done: str, call: Callable[P, Awaitable[None]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Do something, say so in one line (or why not), and draw the page again."""
        try:
            await self.ask(call, *args, **kwargs)
        except FlPrivacyError as problem:
            ui.notify(parts.plain(one_line(problem)), type="negative", timeout=0, close_button=True, multi_line=True)
        else:
            ui.notify(parts.plain(done), type="positive")
        await self.again()

    async def show(self, tab: str, draw: Draw) -> None:
        """Build the page; what has to be asked for follows as soon as the browser is connected."""
        self._tab, self._draw = tab, draw
        ui.add_css(CSS)
        ui.page_title(f"{self.desk.owner.name} · {self.say(tab)}")
        self._header(tab)
        self._body = parts.box("page")
        with self._body:
            ui.spinner(size="32px").classes("waiting")
        try:
            await ui.context.client.connected(timeout=CONNECT_SECONDS)
        except TimeoutError:
            return  # the browser went away
        await self.again()

    async def again(self) -> None:
        """Ask and draw once more; a refusal becomes one line on the page."""
        if self._draw is None:
            return
        try:
            self.status = await self.ask(self.desk.status)
            await self._draw(self)
        except FlPrivacyError as problem:
            with self.fresh():
                parts.notice(self.say("not shown", what=one_line(problem)), "bad")
                ui.button(self.say("retry"), on_click=self.again).props("outline no-caps").classes("retry")

    def fresh(self) -> ui.element:
        """The page's body, emptied; use as a context manager."""
        self._body.clear()
        if self.paused is not None and self._tab != "jobs":  # that page says more about it
            with self._body:
                parts.notice(self.say("paused", reason=self.paused), "warn")
        return self._body

    @property
    def reason(self) -> Question:
        """Asks for a reason, which must be given."""
        return Question(self.say("reason"), lambda told: None if told else self.say("reason needed"))

    @property
    def days(self) -> Question:
        """Asks how long an approval holds; what the policy says is there already."""

        def complaint(told: str) -> str | None:
            is_fine = told.isascii() and told.isdecimal() and len(told) <= 5 and 1 <= int(told) <= MOST_DAYS
            return None if is_fine else self.say("days needed", most=MOST_DAYS)

        return Question(self.say("days"), complaint, str(self.status["policy"]["approval_days"]), "numeric")

    async def confirm(self, title: str, note: str, action: str, level: str, question: Question | None = None) -> str | None:
        """Ask before acting. Returns: the answer (empty without a question), or None when it was cancelled."""
        with ui.dialog() as dialog, parts.box("dialog"):
            parts.text(title, "dialog-title").props('role=heading aria-level="2"')
            parts.text(note, "dialog-note")
            field = self._field(question) if question else None

            def agree() -> None:
                if field is None:
                    dialog.submit("")
                elif field.validate():
                    dialog.submit(_typed(field.value))

            with parts.box("dialog-buttons"):
                ui.button(self.say("cancel"), on_click=lambda: dialog.submit(None)).props("flat no-caps").classes("cancel")
                ui.button(action, on_click=agree).props("unelevated no-caps").classes(f"action {level}").mark("confirm")
        answer: str | None = await dialog
        dialog.clear()
        dialog.delete()
        return answer

    def _field(self, question: Question) -> ui.input:
        field = ui.input(question.label, value=question.value, validation=lambda value: question.complaint(_typed(value)))
        return field.props(f"outlined maxlength=500 inputmode={question.keyboard}")

    def _header(self, tab: str) -> None:
        with ui.element("header").classes("top"), parts.box("top-inner"):
            with parts.box("brand"):
                parts.text(self.desk.owner.name, "brand-name")
                parts.text(self.say("console"), "brand-what")
            with ui.element("nav"):
                for name, icon in TABS.items():
                    link = ui.link(target=f"/{name}").classes("tab active" if name == tab else "tab")
                    with link.props("aria-current=page" if name == tab else ""):
                        ui.icon(icon).props("aria-hidden=true")
                        parts.text(self.say(name))
            with parts.box("tools"):
                other = "English" if self._session.language == "zh" else "中文"
                ui.button(other, on_click=self._switch).props("flat no-caps dense").classes("tool").mark("language")
                with ui.element("form").props("method=post action=/logout"):
                    ui.button(self.say("log out")).props("flat no-caps dense type=submit").classes("tool")

    def _switch(self) -> None:
        self._session.language = "en" if self._session.language == "zh" else "zh"
        ui.navigate.to(self._path)


def _typed(value: Any) -> str:
    return str(value or "").strip()


def one_line(problem: FlPrivacyError) -> str:
    """An error as one line."""
    return " ".join(f"{type(problem).__name__}: {problem}".split())
