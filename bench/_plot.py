"""The picture of a run: time per phase per model, on a logarithmic axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench._common import seconds

PHASES = {
    "compile_s": "compile (operator, once)",
    "keygen_s": "make keys (client, once)",
    "expand_keys_s": "check keys (server, once)",
    "load_s": "load model (server, once)",
    "encrypt_s": "encrypt (client)",
    "ours_s": "evaluate (server)",
    "decrypt_s": "decrypt (client)",
    "other_s": "ONNX Runtime, in the clear",
}
COLOURS = ("#1b6ca8", "#d1701f", "#3c7d5b", "#8e5572")


def plot_phases(rows: list[dict[str, Any]], path: Path) -> None:
    """One group of lines per phase, a point with its time per row; the file's suffix says the format.

    Points, not bars: on a logarithmic axis a bar's length means nothing.
    """
    figure = Figure(figsize=(8, 1 + 0.22 * len(PHASES) * (len(rows) + 0.8)), layout="constrained")
    axes = figure.subplots()
    for i, (row, colour) in enumerate(zip(rows, COLOURS, strict=False)):
        values = [row[key] for key in PHASES]
        places = [phase + (i - (len(rows) - 1) / 2) * 0.75 / len(rows) for phase in range(len(PHASES))]
        axes.plot(values, places, "o", markersize=5, color=colour, label=row["name"])
        for value, place in zip(values, places, strict=True):
            axes.annotate(
                seconds(value),
                (value, place),
                (7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=colour,
            )
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: seconds(x)))
    axes.set_yticks(range(len(PHASES)), list(PHASES.values()))
    axes.set_ylim(len(PHASES) - 0.5, -0.5)
    for boundary in range(1, len(PHASES)):
        axes.axhline(boundary - 0.5, color="0.88", linewidth=0.8, zorder=0)
    axes.grid(axis="x", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title("Time of each phase (logarithmic)", loc="left")
    figure.legend(frameon=False, loc="outside upper right", ncols=len(rows))
    figure.savefig(path, dpi=150)
