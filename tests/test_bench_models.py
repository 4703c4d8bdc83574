"""The comparison of whole networks: the same weights on both sides, fair parameters, and a peer whose failures are told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from bench import _networks as networks
from bench import models
from bench._common import UnfairComparisonError
from bench._orion import peak_rss


def forward(name: str, x: np.ndarray) -> np.ndarray:
    """The network from its weights by their names, as the other side builds it."""
    w = {k: v.astype(np.float64) for k, v in networks.weights(name).items()}
    layers = networks.NETWORKS[name]
    for i, (kind, sizes) in enumerate(layers):
        if kind == "conv":
            kernel, stride, pad = sizes[2:]
            x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
            windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (1, 2))
            x = np.einsum("cyxij,ocij->oyx", windows[:, ::stride, ::stride], w[f"l{i}.weight"])
        else:
            x = w[f"l{i}.weight"] @ x.reshape(-1)
        form = (-1, 1, 1) if kind == "conv" else (-1,)
        x = x + w[f"l{i}.bias"].reshape(form)
        if i + 1 < len(layers):
            scale, offset, mean, variance = (
                w[f"b{i}.{part}"].reshape(form) for part in ("weight", "bias", "running_mean", "running_var")
            )
            x = ((x - mean) / np.sqrt(variance + 1e-5) * scale + offset) ** 2
    return x


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_both_forms_of_a_network_agree(tmp_path: Path, name: str) -> None:
    networks.save_onnx(name, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for row in networks.inputs(2):
        logits = session.run(None, {"image": row[None]})[0].reshape(-1)
        assert np.abs(logits - forward(name, row.astype(np.float64))).max() < 1e-5


def test_every_network_has_a_case_on_the_secure_side() -> None:
    assert set(models.CASES) == set(networks.NETWORKS)
    for case in models.CASES.values():
        models._require_peer_secure(case)
    example = dataclasses.replace(models.CASES["lola"], peer=models._peer(13, 5, 29))  # 217 of 214 bits
    with pytest.raises(UnfairComparisonError, match="128 bits"):
        models._require_peer_secure(example)


def test_a_peer_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "bin" / "python"
    interpreter.parent.mkdir()
    interpreter.write_text("#!/bin/sh\necho no such library >&2\nexit 1\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(models, "HOME", tmp_path)
    with models.Peer("serve", tmp_path, 1) as peer, pytest.raises(models.PeerError, match="no such library"):
        peer.read()


def test_a_peer_answers_what_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "bin" / "python"
    interpreter.parent.mkdir()
    interpreter.write_text('#!/bin/sh\nwhile read line; do echo "{\\"asked\\": $line}"; done\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(models, "HOME", tmp_path)
    with models.Peer("serve", tmp_path, 1) as peer:
        assert peer.ask(row=3) == {"asked": {"row": 3}}


def test_the_peak_of_memory_can_be_forgotten() -> None:
    block = np.ones(50_000_000)
    del block
    before = peak_rss()
    models._forget_peak()
    assert peak_rss() < before - 300_000_000


def test_our_side_computes_the_network(tmp_path: Path) -> None:
    rows = networks.inputs(1)
    ours = models.prepare(models.CASES["lola"], "small", rows, tmp_path, threads=1)
    ours.run(0)
    error = np.abs(ours.logits(0) - forward("lola", rows[0].astype(np.float64))).max()
    assert error <= ours.model.bundle.promised_error
    assert ours.key_bytes <= 8_000_000
