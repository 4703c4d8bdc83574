"""The comparison of libraries on whole models: the network that TenSEAL runs is the model, and every side gets its answers right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from bench import _networks as networks
from bench import libraries
from bench._openfhe import find_python
from bench._tenseal_models import Side, holds, plan
from bench._vectors import VectorNetwork, read
from ckks.security import max_log_qp

MODELS = Path(__file__).resolve().parents[1] / "models"


TOY = (("conv", (3, 2, 3, 2, 1)), ("conv", (2, 3, 3, 2, 1)), ("dense", (12, 6)), ("dense", (6, 10)))


def _model(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """An ONNX file and rows for it."""
    if name in ("digits", "lesion"):
        return MODELS / f"{name}.onnx", np.load(MODELS / "samples" / f"{name}.npz")["x"][:2].astype(
            np.float32
        )
    if name == "toy":
        monkeypatch.setitem(networks.NETWORKS, "toy", TOY)
        monkeypatch.setattr(networks, "SHAPE", (3, 8, 8))
    networks.save_onnx(name, folder / f"{name}.onnx")
    return folder / f"{name}.onnx", networks.inputs(2)


def _logits(path: Path, rows: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, {"image": row[None]})[0].ravel() for row in rows]


@pytest.mark.parametrize("name", ["digits", "lola", "toy", pytest.param("lesion", marks=pytest.mark.slow)])
def test_the_network_read_off_a_model_is_the_model_in_slots_too(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rows = _model(name, tmp_path, monkeypatch)
    network = read(path)
    degree, bits, wide = plan(network)
    assert (degree, wide.grid) == {
        "digits": (8192, 8), "lola": (8192, 14), "toy": (16384, 4), "lesion": (16384, 16)
    }[name]  # fmt: skip
    assert sum(bits) <= max_log_qp(degree)
    for row, wanted in zip(rows.astype(np.float64), _logits(path, rows), strict=True):
        assert np.abs(network(row) - wanted).max() < 1e-4
        assert np.abs(wide(row) - wanted).max() < 1e-4
        assert np.abs(_in_slots(wide, row, degree // 2) - wanted).max() < 1e-4


def _in_slots(network: VectorNetwork, picture: np.ndarray, slots: int) -> np.ndarray:
    """The network by TenSEAL's operations on a vector of slots that turns cyclically."""
    size, windows = network.kernels.shape[-1], network.grid**2
    taps = 1 << (size * size - 1).bit_length()
    columns = []
    for channel in network.prepare(picture):
        views = np.lib.stride_tricks.sliding_window_view(channel, (size, size))
        column = np.zeros((taps, windows))
        column[: size * size] = views[:: network.stride, :: network.stride].reshape(windows, -1).T
        columns.append(np.resize(column.ravel(), slots))
    x, (first, bias) = np.zeros(slots), network.dense[0]
    blocks = np.split(first, len(network.kernels))
    for kernels, shift, block in zip(network.kernels, network.bias, blocks, strict=True):
        y = np.zeros(slots)
        for column, kernel in zip(columns, kernels, strict=True):
            weights = np.resize(
                np.repeat(np.resize(np.append(kernel.ravel(), np.zeros(taps)), taps), windows), slots
            )
            y += sum(np.roll(column * weights, -windows * i) for i in range(taps))
        x += _mm((y + shift) ** 2, block)
    x += np.resize(bias, slots)
    for matrix, bias in network.dense[1:]:
        x = _mm(x**2, matrix) + np.resize(bias, slots)
    return x[: len(bias)]


def _mm(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    rows, columns = matrix.shape
    j = np.arange(len(x))
    return sum(np.roll(x, -i) * matrix[(i + j) % rows, j % columns] for i in range(rows))


def test_a_network_without_a_convolution_is_refused(tmp_path: Path) -> None:
    networks.save_onnx("mlp", tmp_path / "mlp.onnx")
    with pytest.raises(ValueError, match="mlp"):
        read(tmp_path / "mlp.onnx")


def test_rings_without_room_are_refused() -> None:
    kernels, matrix = np.ones((1, 1, 5, 5)), np.ones((256, 10))
    network = VectorNetwork(kernels, np.zeros(1), 2, 2, 16, np.zeros(1), ((matrix, np.zeros(10)),))
    assert holds(network, 8192) and not holds(network, 4096)
    assert holds(network.widened(17), 16384)
    assert not holds(network.widened(17), 9250)  # 289 windows of 32 fit, but three sums only come out right
    with pytest.raises(ValueError, match="no ring"):
        plan(network.widened(32))


@pytest.mark.slow
def test_tenseal_runs_two_convolutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rows = _model("toy", tmp_path, monkeypatch)
    np.savez(tmp_path / "rows.npz", x=rows)
    side = Side()
    assert side.load(str(path), str(tmp_path / "rows.npz"), 1)["parameters"].startswith("n_16384")
    for i, wanted in enumerate(_logits(path, rows)):
        assert side.run(i)["seconds"] > 0
        assert np.abs(np.array(side.logits(i)["logits"]) - wanted).max() < 1e-4


@pytest.mark.slow
def test_every_side_of_a_model_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With OpenFHE's two sides where a Python 3.10 is named, without them elsewhere."""
    monkeypatch.setattr(libraries, "ROUNDS", 1)
    monkeypatch.setattr(libraries, "LEAST_S", 0.0)
    python = find_python()
    rows = libraries.measure(libraries.CASES[0], 1, python, lambda _: None)
    found = {row.other: row for row in rows}
    wanted = ["ours, SEAL's own kind of keys", "TenSEAL's vectors", "ONNX Runtime, in the clear"]
    wanted += ["ours, keys from OpenFHE", "OpenFHE's evaluator"] if python else []
    assert set(found) == set(wanted)
    for row in rows:
        assert row.ours_s > 0 and row.other_s > 0 and row.ratio > 0
        assert row.ours_error <= row.more["promised_error"]
        assert row.other_error <= 2 * row.more["promised_error"]
        if "ONNX" not in row.other:
            assert row.more["other_key_bytes"] > 1e6 and row.more["ours_key_bytes"] > 1e6


def test_slow_sides_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = [0.0]
    monkeypatch.setattr(libraries, "perf_counter", lambda: clock[0])

    def side(name: str, seconds: float) -> libraries.Side:
        def run(row: int) -> float:
            calls.append(name)
            clock[0] += seconds
            return seconds

        return libraries.Side(name, "1", "p", run, lambda row: np.zeros(2), more={"key_bytes": 1})

    sides = [side("ours", 1.0), side("slow", 2 * libraries.BUDGET_S), side("plain", 0.5)]

    class Model:
        class bundle:  # noqa: N801
            promised_error = 1.0

    monkeypatch.setattr(libraries, "_sides", lambda *_: (Model(), sides, {}))
    rows = libraries.measure(libraries.CASES[0], 1, None, lambda _: None)
    assert calls.count("slow") == 1 and calls.count("ours") == libraries.ROUNDS
    assert [row.ratio for row in rows] == [2 * libraries.BUDGET_S, 0.5]
