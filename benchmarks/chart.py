"""Charts as SVG: bars side by side, and lines over time. Pure: numbers in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 860
_LABEL = 150
_BAR = 16
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.title{font-weight:600}.small{fill:#666;font-size:11px}"
    ".other{fill:#9aa7b5}.mine{fill:#d9622b}.axis{stroke:#ccc}"
)
_COLOURS = ("#d9622b", "#2b6cb0", "#2f855a", "#805ad5", "#b7791f", "#4a5568")


@dataclass(frozen=True)
class Bar:
    """One value; `mine` stands out."""

    label: str
    value: float
    mine: bool = False


@dataclass(frozen=True)
class Panel:
    """Bars of one unit, on a scale of their own."""

    title: str
    unit: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Line:
    """Values at x = 0, 1, 2 ..."""

    label: str
    values: Sequence[float]


def panels(drawn: Sequence[Panel]) -> str:
    """All panels, one below the other; shorter bars are better."""
    parts, y = [], 10
    for panel in drawn:
        parts.append(f'<text class="title" x="10" y="{y + 14}">{escape(panel.title)}</text>')
        parts.append(
            f'<text class="small" x="{_WIDTH - 10}" y="{y + 14}" text-anchor="end">'
            f"{escape(panel.unit)}</text>"
        )
        y += 24
        longest = max((bar.value for bar in panel.bars), default=0.0) or 1.0
        for bar in panel.bars:
            width = max(0.0, bar.value / longest * (_WIDTH - _LABEL - 90))
            kind = "mine" if bar.mine else "other"
            parts.append(
                f'<text x="{_LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(bar.label)}</text>'
                f'<rect class="{kind}" x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR - 2}"/>'
                f'<text x="{_LABEL + width + 6:.1f}" y="{y + 12}">{number(bar.value)}</text>'
            )
            y += _BAR + 2
        y += 14
    return _svg(parts, y)


def lines(title: str, unit: str, drawn: Sequence[Line], height: int = 220) -> str:
    """Lines over the same seconds, from zero."""
    left, right, top, bottom = 60, _WIDTH - 20, 40, 40 + height
    most = max((value for line in drawn for value in line.values), default=0.0) or 1.0
    longest = max((len(line.values) for line in drawn), default=0)
    step = (right - left) / max(1, longest - 1)
    parts = [
        f'<text class="title" x="10" y="20">{escape(title)}</text>',
        f'<text class="small" x="{right}" y="20" text-anchor="end">{escape(unit)}</text>',
        f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>',
        f'<text class="small" x="{left - 6}" y="{bottom}" text-anchor="end">0</text>',
        f'<text class="small" x="{left - 6}" y="{top + 8}" text-anchor="end">{number(most)}</text>',
        f'<text class="small" x="{right}" y="{bottom + 16}" text-anchor="end">{max(0, longest - 1)} s</text>',
    ]
    for at, line in enumerate(drawn):
        colour = _COLOURS[at % len(_COLOURS)]
        points = " ".join(
            f"{left + step * x:.1f},{bottom - value / most * height:.1f}"
            for x, value in enumerate(line.values)
        )
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>')
        parts.append(
            f'<text x="{left + 120 * at}" y="{bottom + 34}" style="fill:{colour}">{escape(line.label)}</text>'
        )
    return _svg(parts, bottom + 50)


def number(value: float) -> str:
    """The number with its significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _svg(parts: Sequence[str], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img">\n<style>{_STYLE}</style>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
