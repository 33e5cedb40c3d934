"""What a scorecard consists of: measured values, their targets, and how both are shown."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

AT_MOST, AT_LEAST, FOR_INFORMATION = "<=", ">=", ""


@dataclass(frozen=True)
class Metric:
    """One line of the scorecard.

    Attributes
    ----------
    name : str
        Key in the JSON form; ends with the unit where there is one.
    value : float or None
        None where it could not be measured, which counts as missed.
    sense : str
        ``<=``, ``>=``, or empty for a value that is only reported.
    target : float or None
    note : str
        One line: what was compared with what.
    """

    name: str
    value: float | None
    sense: str
    target: float | None
    note: str

    @property
    def ok(self) -> bool:
        """Whether the target is met; reported values always are."""
        if self.sense == FOR_INFORMATION:
            return True
        if self.value is None or self.target is None or not math.isfinite(self.value):
            return False
        return self.value <= self.target if self.sense == AT_MOST else self.value >= self.target


def at_most(name: str, value: float | None, target: float, note: str) -> Metric:
    """A value that must not exceed its target."""
    return Metric(name, _plain(value), AT_MOST, target, note)


def at_least(name: str, value: float | None, target: float, note: str) -> Metric:
    """A value that must reach its target."""
    return Metric(name, _plain(value), AT_LEAST, target, note)


def reported(name: str, value: float | None, note: str) -> Metric:
    """A value without a target."""
    return Metric(name, _plain(value), FOR_INFORMATION, None, note)


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def as_json(metrics: Iterable[Metric]) -> str:
    """``{metric: {"value": v, "target": t, "ok": bool}}``; null where there is no value or no target."""
    content = {m.name: {"value": m.value, "target": m.target, "ok": m.ok} for m in metrics}
    return json.dumps(content, indent=1, allow_nan=False)


def shown(value: float | None) -> str:
    """A number as people read it."""
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def verdict(metric: Metric) -> str:
    """``ok``, ``MISSED`` or nothing."""
    if metric.sense == FOR_INFORMATION:
        return ""
    return "ok" if metric.ok else "MISSED"


def as_table(sections: dict[str, list[Metric]]) -> str:
    """Readable table: value, target, verdict, explanation, under a heading for each section."""
    width = max((len(m.name) for metrics in sections.values() for m in metrics), default=0)
    lines = []
    for heading, metrics in sections.items():
        lines += ["", heading]
        for m in metrics:
            target = f"{m.sense} {shown(m.target)}" if m.sense else ""
            lines.append(f"  {m.name:<{width}} {shown(m.value):>8} {target:>9} {verdict(m):<6} {m.note}")
    return "\n".join(lines)
