"""What the guard is training now, with a stop for each order and for everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nicegui import ui

from fl_privacy.console import parts
from fl_privacy.console.parts import Level
from fl_privacy.console.visit import Visit
from fl_privacy.errors import FlPrivacyError

EVERY_SECONDS = 1.0
RUNNING = "training"
MOST_EARLIER = 50
STATES: dict[str, Level] = {"training": "info", "sealed": "good", "failed": "bad", "stopped": "warn"}
Job = Mapping[str, Any]


async def draw(visit: Visit) -> None:
    """Both lists, kept up to date while the page is open."""
    jobs = await visit.ask(visit.desk.jobs)
    with visit.fresh():
        _JobsView(visit, jobs)


class _JobsView:
    """The drawn page. Progress is written into what is there; only orders that come or end draw the page again, so that
    nothing moves under a finger on its way to a button."""

    def __init__(self, visit: Visit, jobs: list[dict[str, Any]]) -> None:
        self._visit, self._known = visit, _states(jobs)
        self._cards: dict[str, _JobCard] = {}
        self._site()
        running = [job for job in jobs if job["state"] == RUNNING]
        with parts.card(visit.say("running")):
            if not running:
                parts.text(visit.say("nothing runs"), "muted")
            for job in running:
                self._cards[job["order"]] = _JobCard(visit, job)
        _earlier(visit, [job for job in jobs if job["state"] != RUNNING])
        self._timer = ui.timer(EVERY_SECONDS, self._refresh, immediate=False)

    async def _refresh(self) -> None:
        try:
            jobs = await self._visit.ask(self._visit.desk.jobs)
        except FlPrivacyError:
            self._timer.cancel()
            await self._visit.again()  # says on the page what is wrong
            return
        if _states(jobs) != self._known:
            self._timer.cancel()
            await self._visit.again()
            return
        for job in jobs:
            if job["order"] in self._cards:
                self._cards[job["order"]].update(job)

    def _site(self) -> None:
        visit = self._visit

        async def pause() -> None:
            title, note = visit.say("pause?"), visit.say("pause note")
            if (reason := await visit.confirm(title, note, visit.say("pause"), "bad", visit.reason)) is not None:
                await visit.act(visit.say("done pause"), visit.desk.pause, reason)

        async def resume() -> None:
            await visit.act(visit.say("done resume"), visit.desk.resume)

        parts.text(visit.say("jobs"), "page-title").props('role=heading aria-level="1"')
        with parts.card(classes="site" if visit.paused is None else "site paused"):
            told = visit.say("working") if visit.paused is None else visit.say("paused", reason=visit.paused)
            parts.text(told, "site-state")
            if visit.paused is None:
                button = ui.button(visit.say("pause"), on_click=pause, icon="pause").props("outline no-caps")
                button.classes("action-outline bad").mark("pause")
            else:
                button = ui.button(visit.say("resume"), on_click=resume, icon="play_arrow").props("unelevated no-caps")
                button.classes("action good").mark("resume")


class _JobCard:
    """One running order."""

    def __init__(self, visit: Visit, job: Job) -> None:
        self._visit = visit

        async def stop() -> None:
            title, note = visit.say("stop?"), visit.say("stop note")
            if (reason := await visit.confirm(title, note, visit.say("stop"), "bad", visit.reason)) is not None:
                await visit.act(visit.say("done stop"), visit.desk.stop_job, job["order"], reason)

        with parts.box("job"):
            with parts.box("job-what"):
                parts.text(job["plan"], "strong clip")
                parts.text(_where(visit, job), "small muted clip")
            with parts.box("job-progress"):
                self._bar = ui.linear_progress(0.0, show_value=False, size="10px").props("rounded instant-feedback")
                with parts.box("share-foot"):
                    self._step = parts.text("", "small")
                    self._seconds = parts.text("", "small muted")
            button = ui.button(visit.say("stop"), on_click=stop, icon="stop").props("outline no-caps")
            button.classes("action-outline bad").mark("stop")
        self.update(job)

    def update(self, job: Job) -> None:
        """Show how far it is."""
        self._bar.set_value(job["step"] / job["steps"] if job["steps"] else 0.0)
        self._step.set_text(self._visit.say("step", step=job["step"], steps=job["steps"]))
        self._seconds.set_text(self._visit.say("seconds", seconds=f"{job['seconds']:.0f}"))


def _earlier(visit: Visit, jobs: list[dict[str, Any]]) -> None:
    with parts.card(visit.say("recent")):
        if not jobs:
            parts.text(visit.say("nothing ran"), "muted")
        for job in jobs[:MOST_EARLIER]:
            with parts.box("job earlier"):
                with parts.box("job-what"):
                    parts.text(job["plan"], "strong clip")
                    parts.text(_where(visit, job), "small muted clip")
                parts.text(visit.say("step", step=job["step"], steps=job["steps"]), "small muted")
                parts.badge(visit.say(job["state"]), STATES.get(job["state"], "quiet"))


def _where(visit: Visit, job: Job) -> str:
    told = [
        _work(visit, job),
        f"{job['scientist'][:16]}…",
        f"{visit.say('order')} {job['order'][:12]}",
    ]
    if job["attempt"]:
        told.insert(1, visit.say("attempt", number=job["attempt"] + 1))
    return " · ".join(told)


def _work(visit: Visit, job: Job) -> str:
    number = job["round"] + 1
    if job["purpose"] == "train":
        return visit.say("round", number=number)
    return visit.say("final evaluation" if job["is_final"] else "evaluation before", number=number)


def _states(jobs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(job["order"], job["state"]) for job in jobs]
