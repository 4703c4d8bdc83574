"""The report as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from ckks.bundle import Bundle
from compiler.plots import fit_plot, tradeoff_plot

MAX_CONFUSION = 30  # classes; a larger matrix cannot be read


def render(bundle: Bundle, report: dict[str, Any]) -> str:
    """The page for a compiled model and its report (compiler/report.py)."""
    sections = [
        _head(bundle, report),
        _budgets(report),
        _validation(bundle, report),
        _maxpool(report),
        _fits(report),
        _layers(report),
        _keys(report),
        _security(report),
        _sizes(report),
    ]
    style = (files("compiler") / "report.css").read_text(encoding="utf-8")
    name = escape(bundle.name)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: compiled model</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(s for s in sections if s)
        + "\n</main></body></html>\n"
    )


def _head(bundle: Bundle, report: dict[str, Any]) -> str:
    security = report["security"]["bits"]
    tiles = [
        (f"{security} bits", f"security, N = {report['n']}, log QP = {report['log_qp']}"),
        (_size(report["key_bytes"]), f"keys a client uploads once, {report['rotation_keys']} rotations"),
        (_size(report["ciphertext_bytes"]), "ciphertext a picture"),
        _latency_tile(report),
        (_size(report["server_bytes"]), "server memory with one client's keys"),
        (
            f"{report['promised_error']:.2g}",
            f"largest error of a logit promised; {report['predicted_error']:.2g} expected of the worst",
        ),
    ]
    if "validation" in report:
        found = report["validation"]
        after = found["polynomial"]["accuracy"]
        tiles.insert(0, (_percent(after), f"accuracy with polynomials; {_percent(found['accuracy'])} before"))
    boxes = "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    inputs = ", ".join(f"{s.packing.shape} in {s.low:g}..{s.high:g}" for s in bundle.inputs)
    shapes = f"{inputs} to {', '.join(str(s.packing.shape) for s in bundle.outputs)}"
    about = f'<p class="soft">{escape(bundle.description)}</p>' if bundle.description else ""
    return (
        f'<h1>{escape(bundle.name)}</h1>{about}<p class="soft">{escape(shapes)}. Calibrated with {escape(report["calibration"])}. '
        f'Digest {bundle.digest[:16]}.</p><div class="tiles">{boxes}</div>'
    )


def _latency_tile(report: dict[str, Any]) -> tuple[str, str]:
    threads = f"{report['threads']} thread{'s' * (report['threads'] > 1)}"
    if "measured_seconds" not in report:
        return _seconds(report["predicted_seconds"]), f"an inference on {threads} (predicted)"
    predicted = _seconds(report["predicted_seconds"])
    return _seconds(
        report["measured_seconds"]
    ), f"an inference on {threads} (measured; predicted {predicted})"


def _budgets(report: dict[str, Any]) -> str:
    rows = [
        [escape(b["name"]), *(_amount(b["unit"], b[k]) for k in ("value", "limit")), _verdict(b["met"])]
        for b in report.get("budgets", ())
    ]
    return "<h2>Budgets</h2>" + _table(["", "value", "limit", ""], rows) if rows else ""


def _amount(unit: str, value: float) -> str:
    return {"bytes": _size, "s": _seconds, "share": _percent}[unit](value)


def _verdict(met: bool) -> str:
    return '<span class="good">met</span>' if met else '<span class="bad">missed</span>'


def _validation(bundle: Bundle, report: dict[str, Any]) -> str:
    found = report.get("validation")
    if found is None:
        return (
            '<h2>Accuracy</h2><p class="soft">Not measured: give labelled rows with --validate X.npz '
            "(arrays x and y).</p>"
        )
    steps = [
        ("with average pooling in place of max pooling", found["averaged"]),
        ("with polynomials for its activations", found["polynomial"]),
        ("the circuit with simulated noise", found["noisy"]),
    ]
    rows = [["original network", str(found["rows"]), _percent(found["accuracy"]), "", ""]]
    rows += [
        [
            name, str(step.get("rows", found["rows"])), _percent(step["accuracy"]), _percent(step["agreement"]),
            f"{step['largest_difference']:.3g}",
        ]
        for name, step in steps if step is not None
    ]  # fmt: skip
    headers = ["", "rows", "accuracy", "same class as the line above", "largest change of a logit"]
    note = (
        _outside(found["outside"])
        if report["activations"]["fits"]
        else "All activations of this network are polynomials already: nothing was approximated."
    )
    return f'<h2>Accuracy</h2>{_table(headers, rows)}<p class="soft">{note}</p>' + _confusion(
        bundle.outputs[0].labels, found["confusion"]
    )


def _outside(found: dict[str, Any]) -> str:
    if not found["rows"]:
        return "All these rows calibrated the intervals, so they cannot say how many other inputs leave them."
    return (
        f"{found['outside']} of the {found['rows']} rows that did not calibrate bring a value outside a fitted interval, where a "
        f"polynomial goes anywhere: with 95 % confidence at most {_percent(found['bound'])} of such inputs do."
    )


def _confusion(labels: Sequence[str], matrix: list[list[int]]) -> str:
    if len(matrix) > MAX_CONFUSION:
        return ""
    names = (
        [escape(n) for n in labels] if len(labels) == len(matrix) else [str(i) for i in range(len(matrix))]
    )
    head = "".join(f"<th>{n}</th>" for n in names)
    body = []
    for i, (name, row) in enumerate(zip(names, matrix, strict=True)):
        shares = [n / max(sum(row), 1) for n in row]
        colours = [
            f"var(--fill), {0.7 * s:.2f}" if j == i else f"var(--miss), {min(3 * s, 0.8) + 0.1 * (s > 0):.2f}"
            for j, s in enumerate(shares)
        ]
        cells = (
            f'<td style="background: rgba({colour})">{n or ""}</td>'
            for colour, n in zip(colours, row, strict=True)
        )
        body.append(f'<tr><th class="label">{name}</th>{"".join(cells)}</tr>')
    return (
        '<h2>Confusion matrix</h2><p class="soft">Rows: true classes; columns: answers with polynomials.</p>'
        f'<div class="box"><table class="confusion"><tr><th></th>{head}</tr>{"".join(body)}</table></div>'
    )


def _maxpool(report: dict[str, Any]) -> str:
    found = report.get("maxpool")
    if found is None:
        return ""
    names = ", ".join(escape(name) for name in found["replaced"])
    rows = [
        ["replaced", names],
        ["rows compared with the original", str(found["rows"])],
        ["same class as with max pooling", _percent(found["same_class"])],
        ["largest change of a logit", f"{found['largest_change']:.3g}, the largest logit being {found['largest_logit']:.3g}"],
    ]  # fmt: skip
    advice = (
        ""
        if found["same_class"] >= 0.99
        else " Train the network a little more with average pooling to win back what is lost."
    )
    return (
        "<h2>Max pooling replaced</h2>"
        + _pairs(rows)
        + '<p class="soft">Max pooling has no cheap polynomial: average pooling stands in its place, as asked for with '
        f"--maxpool average.{advice}</p>"
    )


def _keys(report: dict[str, Any]) -> str:
    """Bytes against time for the sets of rotation keys that --keys could choose."""
    curve = report["key_tradeoff"]
    if len(curve) < 2:
        return ""
    in_units = [[size / 1e6, seconds * 1e3] for size, seconds in (*curve, report["key_choice"])]
    plot = tradeoff_plot(in_units[:-1], in_units[-1], "Keys uploaded against predicted time", "MB", "ms")
    fewest, most = min(curve), max(curve)
    return (
        "<h2>Keys against time</h2><p>A rotation without a key of its own goes by way of others: fewer keys, more time. "
        "The ring marks this model; <code>--keys fast</code>, <code>small</code> or a number of bytes chooses another point.</p>"
        f'<div class="figures"><figure>{plot}<figcaption>From {_size(most[0])} at {_seconds(most[1])} to {_size(fewest[0])} at '
        f"{_seconds(fewest[1])}: upload, and predicted time on one thread.</figcaption></figure></div>"
    )


def _fits(report: dict[str, Any]) -> str:
    found = report["activations"]
    if not found["fits"]:
        return ""
    figures = []
    for f in found["fits"]:
        title = f"{' of '.join(reversed(f['operators']))} at {f['layer']}"
        plot = fit_plot(
            f["x"],
            f["function"],
            f["polynomial"],
            f["histogram"],
            tuple(f["calibrated_range"]),
            escape(title),
        )
        figures.append(
            f"<figure><figcaption><b>{escape(title)}</b></figcaption>{plot}<figcaption>Degree {f['degree']} by {f['method']}, "
            f"{f['levels']} level{'s' * (f['levels'] > 1)}, on {f['interval'][0]:.3g}..{f['interval'][1]:.3g}. Largest error "
            f"{f['largest_error']:.2g}, rms over the values {f['rms_error']:.2g} ({_percent(f['relative_rms_error'])} of their spread)."
            "</figcaption></figure>"
        )
    error, budget = found["output_error"], found["budget"]
    verdict = _verdict(error <= budget)
    return (
        "<h2>Activations</h2><p>Together they change the outputs on the calibration rows by "
        f"{_percent(error)} (rms, relative to their spread); budget {_percent(budget)}: {verdict}.</p>"
        '<p class="soft"><span class="key" style="color: var(--accent); opacity: .45"></span>function'
        '<span class="key" style="color: var(--warm)"></span>polynomial'
        '<span class="key" style="color: var(--line); border-width: 10px"></span>calibrated values (root of the share); '
        f'dashed: their range</p><div class="figures">{"".join(figures)}</div>'
    )


def _layers(report: dict[str, Any]) -> str:
    measured = "measured_seconds" in report
    shown = "measured_seconds" if measured else "predicted_seconds"
    longest = max((s[shown] for s in report["steps"]), default=0.0) or 1.0
    rows = [
        [
            escape(s["layer"]) or "-", f"{s['level_before']} → {s['level_after']}", str(s["operations"]), str(s["rotations"] or ""),
            _seconds(s["predicted_seconds"]), *([_seconds(s["measured_seconds"])] if measured else []),
            f'<div style="width: {100 * s[shown] / longest:.1f}%"></div>',
        ]
        for s in report["steps"]
    ]  # fmt: skip
    total = ["together", "", "", "", _seconds(report["predicted_seconds"])]
    rows.append([*total, *([_seconds(report["measured_seconds"])] if measured else []), ""])
    headers = [
        "layer",
        "level",
        "operations",
        "rotations",
        "predicted",
        *(["measured"] if measured else []),
        "",
    ]
    note = (
        "Measured on the machine that made this report. "
        if measured
        else "Times are predictions, not measurements. "
    )
    return (
        f'<h2>Layers</h2><p class="soft">{report["levels"]} levels, threads: {report["threads"]}. {note}'
        f"Predicted: {escape(report['prediction'])}.</p>" + _table(headers, rows, share=True)
    )


def _security(report: dict[str, Any]) -> str:
    bits = report["prime_bits"]
    rows = [
        ["security", f"{report['security']['bits']} bits, classical, ternary secret"],
        ["source", escape(report["security"]["source"])],
        ["ring degree N", str(report["n"])],
        ["log2 of the largest modulus", str(report["log_qp"])],
        ["data primes (bits)", " ".join(map(str, bits["data"]))],
        ["special primes (bits)", " ".join(map(str, bits["special"]))],
        ["limbs a digit", str(report["digit_limbs"])],
    ]
    return (
        "<h2>Security</h2>"
        + _pairs(rows)
        + '<p class="soft">Compiler, client and server each refuse parameters below '
        "128 bits by their own tables.</p>"
    )


def _sizes(report: dict[str, Any]) -> str:
    operations = ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in report["operations"].items()
    )
    rows = [
        ["keys as uploaded", _size(report["key_bytes"])],
        ["keys in the server's memory", _size(report["expanded_key_bytes"])],
        ["ciphertext as sent", _size(report["ciphertext_bytes"])],
        ["encoded weights in memory", _size(report["weight_bytes"])],
        ["polynomials during an evaluation", _size(report["working_bytes"])],
        ["server memory with one client, beside the program itself", _size(report["server_bytes"])],
        ["operations", escape(operations)],
        ["limb transforms, limb products", f"{report['limb_transforms']}, {report['limb_products']}"],
        ["time to compile", _seconds(report["compile_seconds"])],
    ]
    return "<h2>Sizes and operations</h2>" + _pairs(rows)


def _pairs(rows: Iterable[Sequence[str]]) -> str:
    body = "".join(
        f'<tr><td>{a}</td><td class="text" style="white-space: normal">{b}</td></tr>' for a, b in rows
    )
    return f'<div class="box"><table>{body}</table></div>'


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]], share: bool = False) -> str:
    """share: the last column holds bars."""
    head = (
        "".join(f"<th>{h}</th>" for h in (headers[:-1] if share else headers))
        + '<th class="share"></th>' * share
    )
    body = []
    for row in rows:
        cells = [f"<td>{c}</td>" for c in (row[:-1] if share else row)]
        body.append(
            "<tr>" + "".join(cells) + (f'<td class="share">{row[-1]}</td>' if share else "") + "</tr>"
        )
    return f'<div class="box"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _size(count: float) -> str:
    units = ["bytes", "kB", "MB", "GB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.4g} {units[0]}"
