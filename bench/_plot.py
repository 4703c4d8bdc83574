"""The picture of a run: time per phase per model, on a logarithmic axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench._common import seconds

PHASES = {
    "compile_s": "compile (operator, once)",
    "keygen_s": "make keys (client, once)",
    "expand_keys_s": "check keys (server, once)",
    "first_s": "first evaluation (server)",
    "encrypt_s": "encrypt (client)",
    "ours_s": "evaluate (server)",
    "decrypt_s": "decrypt (client)",
    "other_s": "ONNX Runtime, in the clear",
}
COLOURS = ("#1b6ca8", "#e08e45", "#4c956c", "#8e5572")


def plot_phases(rows: list[dict[str, Any]], path: Path) -> None:
    """One group of bars per phase, one bar per row, each with its time; the file's suffix says the format."""
    figure = Figure(figsize=(9, 0.55 + 0.27 * len(PHASES) * (len(rows) + 0.8)), layout="constrained")
    axes = figure.subplots()
    times = [row[key] for row in rows for key in PHASES]
    height = 0.8 / len(rows)
    for i, (row, colour) in enumerate(zip(rows, COLOURS, strict=False)):
        values = [row[key] for key in PHASES]
        places = [phase + (i - (len(rows) - 1) / 2) * height for phase in range(len(PHASES))]
        bars = axes.barh(places, values, height, color=colour, label=row["name"])
        axes.bar_label(bars, [seconds(v) for v in values], padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 2, max(times) * 4)  # bars start left of the shortest; labels fit to the right
    axes.set_yticks(range(len(PHASES)), list(PHASES.values()))
    axes.invert_yaxis()
    axes.set_xlabel("seconds (logarithmic)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
