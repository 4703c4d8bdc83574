"""The report's plots as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 26
TICKS = 5  # about so many on each axis


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
    low, high = low - pad, high + pad
    left, right = x[0], x[-1]

    def px(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def py(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>',
        *_bars(histogram),
    ]
    parts += [
        f'<text class="tick" x="{px(v):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{v:g}</text>'
        for v in ticks(left, right)
    ]
    parts += [
        f'<path class="gridline" d="M{LEFT} {py(v):.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{py(v) + 3.5:.1f}" text-anchor="end">{v:g}</text>'
        for v in ticks(low, high)
    ]
    parts += [
        f'<path class="seen" d="M{px(v):.1f} {TOP}V{HEIGHT - BOTTOM}"/>' for v in seen if left < v < right
    ]
    for name, line in (("function", function), ("polynomial", polynomial)):
        points = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in zip(x, line, strict=True))
        parts.append(f'<polyline class="{name}" points="{points}"/>')
    return "".join([*parts, "</svg>"])


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
