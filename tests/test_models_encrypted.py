"""Each committed model, encrypted, against ONNX Runtime: 20 images, real keys, the worst logit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ckks import wire
from ckks.backends import make_backend
from ckks.encoded import EncodedWeights
from ckks.evaluator import CkksEvaluator
from ckks.expanded import expand_keys, map_keys
from ckks.interpreter import run
from compiler.compile import compile_model
from keys import SecretKey

MODELS = Path(__file__).resolve().parents[1] / "models"
IMAGES = 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "fashion", "lesion"])
def test_encrypted_logits_agree_with_onnx_runtime(name: str, tmp_path: Path) -> None:
    rows = np.load(MODELS / "samples" / f"{name}.npz")["x"].astype(np.float32)
    # Calibrated on one half, judged on the other.
    model = compile_model(MODELS / f"{name}.onnx", calibration=rows[:32].astype(np.float64), name=name)
    bundle, p = model.bundle, model.bundle.checked_parameters()
    secret = SecretKey.generate(p)
    wire.dump_keys(tmp_path / "keys", secret.evaluation_keys(bundle.key_needs()))
    expand_keys(tmp_path / "keys", tmp_path / "expanded", p, bundle.key_needs())
    backend = make_backend(p, "cpu", threads=2)
    evaluator = CkksEvaluator(
        backend, map_keys(tmp_path / "expanded", p), EncodedWeights(backend, model.weights)
    )
    plain = onnxruntime.InferenceSession(MODELS / f"{name}.onnx", providers=["CPUExecutionProvider"])
    worst = 0.0
    for row in rows[-IMAGES:]:
        slots = np.zeros(bundle.input.packing.period)
        slots[bundle.input.packing.slots] = row.astype(np.float64).ravel()
        data = wire.dump_ciphertext(p, secret.encrypt(slots, bundle.input.level, bundle.input.scale))
        fresh = wire.load_ciphertext(data, p, bundle.input.level, bundle.input.scale)
        result = run(model.circuit, {bundle.input.name: fresh}, evaluator)[bundle.output.name]
        decrypted = secret.decrypt(result)
        logits = decrypted[bundle.output.packing.slots]
        expected = plain.run(None, {"image": row[None]})[0][0]
        worst = max(worst, float(np.abs(logits - expected).max()))
        # The logits agree within the promise, so classes can differ only where plaintext itself is that undecided.
        top = np.sort(expected)[-2:]
        if top[1] - top[0] > 2 * bundle.promised_error:
            assert logits.argmax() == expected.argmax()
        # Slots that are not part of the answer hold copies of it, or nothing but noise.
        unused = np.ones(bundle.output.packing.period, dtype=bool)
        unused[bundle.output.packing.slots] = False
        spare = decrypted.reshape(-1, bundle.output.packing.period)[:, unused]
        assert np.abs(spare).max(initial=0.0) <= bundle.promised_error
    assert worst <= bundle.promised_error, (worst, bundle.promised_error)
    print(f"{name}: worst logit error {worst:.2e} of promised {bundle.promised_error:.2e}, {p}")
