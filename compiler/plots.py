"""The report's plots as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 26
TICKS = 6  # about so many on each axis, at most


def fit_plot(
    x: Sequence[float],
    function: Sequence[float],
    polynomial: Sequence[float],
    histogram: Sequence[float],
    seen: tuple[float, float],
    title: str,
) -> str:
    """A function and its polynomial over x, above the histogram of calibrated values; seen: their range, marked by dashed lines."""
    low, high = min(*function, *polynomial), max(*function, *polynomial)
    pad = 0.06 * ((high - low) or 1.0)
    frame = _Frame(x[0], x[-1], low - pad, high + pad)
    parts = [_open(title), *_bars(histogram), *frame.axes()]
    parts += [
        f'<path class="seen" d="M{frame.px(v):.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        for v in seen
        if x[0] < v < x[-1]
    ]
    for name, line in (("function", function), ("polynomial", polynomial)):
        parts.append(f'<polyline class="{name}" points="{frame.points(x, line)}"/>')
    return "".join([*parts, "</svg>"])


def tradeoff_plot(
    curve: Sequence[Sequence[float]], chosen: Sequence[float], title: str, unit_x: str, unit_y: str
) -> str:
    """Points (x, y) joined in order, and the one that was chosen; both axes from zero."""
    xs, ys = zip(*curve, strict=True)
    frame = _Frame(0.0, 1.08 * max(*xs, chosen[0]), 0.0, 1.12 * max(*ys, chosen[1]))
    x, y = frame.px(chosen[0]), frame.py(chosen[1])
    parts = [
        _open(title),
        *frame.axes(),
        f'<polyline class="curve" points="{frame.points(xs, ys)}"/>',
        *(f'<circle class="point" cx="{frame.px(a):.1f}" cy="{frame.py(b):.1f}" r="2.5"/>' for a, b in curve),
        f'<circle class="chosen" cx="{x:.1f}" cy="{y:.1f}" r="6"/>',
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - BOTTOM - 5}" text-anchor="end">{unit_x}</text>',
        f'<text class="tick" x="{LEFT + 5}" y="{TOP + 8}">{unit_y}</text>',
    ]
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True)
class _Frame:
    """The plotting area: data coordinates to those of the picture."""

    left: float
    right: float
    low: float
    high: float

    def px(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def py(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def points(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        return " ".join(f"{self.px(a):.1f},{self.py(b):.1f}" for a, b in zip(xs, ys, strict=True))

    def axes(self) -> list[str]:
        across = (
            f'<text class="tick" x="{self.px(v):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{v:g}</text>'
            for v in ticks(self.left, self.right)
        )
        up = (
            f'<path class="gridline" d="M{LEFT} {self.py(v):.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{self.py(v) + 3.5:.1f}" text-anchor="end">{v:g}</text>'
            for v in ticks(self.low, self.high)
        )
        return [*across, *up]


def _open(title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>'


def _bars(histogram: Sequence[float]) -> list[str]:
    """Bars whose heights are square roots of the shares: rare values stay visible."""
    tallest = max(max(histogram), 1e-12)
    step = (WIDTH - LEFT - RIGHT) / len(histogram)
    bars = []
    for i, share in enumerate(histogram):
        if share > 0:
            height = max(math.sqrt(share / tallest) * (HEIGHT - TOP - BOTTOM), 1.0)
            bars.append(
                f'<rect class="bar" x="{LEFT + i * step:.2f}" y="{HEIGHT - BOTTOM - height:.1f}" '
                f'width="{step * 0.9:.2f}" height="{height:.1f}"/>'
            )
    return bars


def ticks(low: float, high: float) -> list[float]:
    """Round numbers in [low, high], about TICKS of them."""
    raw = (high - low) / TICKS
    power: float = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]
