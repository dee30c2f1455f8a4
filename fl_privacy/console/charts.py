"""Options of the console's charts (Apache ECharts). Labels are drawn on canvas; tooltips are told to be text, not HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fl_privacy.console.spending import Point

SPENT, BUDGET, GRID, MUTED = "#2b4c7e", "#c92a2a", "#e1e6ec", "#616e7c"
CALM, NEAR, FULL = "#2f7d5b", "#c77700", "#c92a2a"
FONT = {"color": MUTED, "fontSize": 12}


def level(fraction: float) -> str:
    """Colour of a spent fraction of the budget."""
    return CALM if fraction < 0.6 else NEAR if fraction < 0.9 else FULL


def gauge(spent: float, budget: float, label: str) -> dict[str, Any]:
    """The spent part of the budget, in percent of a half circle."""
    fraction = spent / budget
    series = {
        "type": "gauge",
        "startAngle": 180,
        "endAngle": 0,
        "min": 0,
        "max": 100,
        "radius": "130%",
        "center": ["50%", "82%"],
        "progress": {"show": True, "width": 18, "itemStyle": {"color": level(fraction)}},
        "axisLine": {"lineStyle": {"width": 18, "color": [[1, "#e9edf2"]]}},
        "pointer": {"show": False},
        "axisTick": {"show": False},
        "splitLine": {"show": False},
        "axisLabel": {"show": False},
        "title": {"offsetCenter": [0, "0%"], **FONT, "fontSize": 13},
        "detail": {"offsetCenter": [0, "-28%"], "fontSize": 32, "color": "#1f2933", "formatter": "{value} %"},
        "data": [{"value": round(100 * fraction, 1), "name": label}],
    }
    return {"series": [series], "animationDuration": 400}


def over_time(known: Sequence[Point], now: int, spent: str, budget: str | None) -> dict[str, Any]:
    """The total bound as steps until now; ``budget`` names the line of the budget, None where it does not bound the total."""
    points = [*known, replace(known[-1], time=max(now, known[-1].time))]
    curves = [_steps(spent, [[p.time * 1000, round(p.epsilon, 4)] for p in points], SPENT)]
    curves[0]["areaStyle"] = {"color": SPENT, "opacity": 0.08}
    if budget is not None:
        curves.append(_steps(budget, [[p.time * 1000, p.budget] for p in points], BUDGET, dashed=True))
    return _frame([curve["name"] for curve in curves]) | {"xAxis": {"type": "time", **_axis()}, "series": curves}


def forecast(values: Sequence[float], budget: float, labels: Sequence[str], spent: str, limit: str) -> dict[str, Any]:
    """Epsilon after each round (first value: now) as bars against the budget."""
    bars = [{"value": round(v, 4), "itemStyle": {"color": "#9aa8b8" if i == 0 else SPENT}} for i, v in enumerate(values)]
    series: list[dict[str, Any]] = [
        {"name": spent, "type": "bar", "data": bars, "barMaxWidth": 34, "itemStyle": {"color": SPENT}},
        _steps(limit, [budget] * len(values), BUDGET, dashed=True),
    ]
    x = {"type": "category", "data": list(labels), **_axis()}
    return _frame([spent, limit]) | {"xAxis": x, "series": series}


def _frame(names: Sequence[str]) -> dict[str, Any]:
    return {
        "tooltip": {"trigger": "axis", "renderMode": "richText", "confine": True},
        "legend": {
            "data": list(names),
            "top": 0,
            "left": 0,
            "icon": "roundRect",
            "itemWidth": 16,
            "itemHeight": 8,
            "textStyle": FONT,
        },
        "grid": {"left": 8, "right": 16, "top": 40, "bottom": 4, "containLabel": True},
        "yAxis": {"type": "value", "min": 0, **_axis(), "splitLine": {"lineStyle": {"color": GRID}}},
        "animationDuration": 400,
    }


def _axis() -> dict[str, Any]:
    return {"axisLabel": {**FONT, "hideOverlap": True}, "axisLine": {"lineStyle": {"color": GRID}}, "axisTick": {"show": False}}


def _steps(name: str, data: Sequence[Any], colour: str, dashed: bool = False) -> dict[str, Any]:
    line = {"width": 2, "color": colour, **({"type": "dashed"} if dashed else {})}
    return {
        "name": name,
        "type": "line",
        "step": "end",
        "data": list(data),
        "lineStyle": line,
        "itemStyle": {"color": colour},
        "symbol": "none" if dashed else "circle",
        "symbolSize": 5,
    }
