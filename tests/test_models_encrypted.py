"""Each committed model, encrypted, against ONNX Runtime: 20 images (2 of the largest model), real keys, the worst logit."""

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
from he_serve.packing import pack_inputs, unpack
from keys import SecretKey

MODELS = Path(__file__).resolve().parents[1] / "models"
IMAGES = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "images"), [("digits", IMAGES), ("fashion", IMAGES), ("lesion", IMAGES), ("lesion64", 2)]
)
def test_encrypted_logits_agree_with_onnx_runtime(name: str, images: int, tmp_path: Path) -> None:
    rows = np.load(MODELS / "samples" / f"{name}.npz")["x"].astype(np.float32)
    # Calibrated on one half, judged on the other.
    calibration = rows[: len(rows) // 2].astype(np.float64)
    model = compile_model(MODELS / f"{name}.onnx", calibration=calibration, name=name)
    bundle, p = model.bundle, model.bundle.checked_parameters()
    sent, output = bundle.input_ciphertexts, bundle.output
    secret = SecretKey.generate(p)
    wire.dump_keys(tmp_path / "keys", secret.evaluation_keys(bundle.key_needs()))
    expand_keys(tmp_path / "keys", tmp_path / "expanded", p, bundle.key_needs())
    backend = make_backend(p, "cpu", threads=2)
    evaluator = CkksEvaluator(
        backend, map_keys(tmp_path / "expanded", p), EncodedWeights(backend, model.weights)
    )
    plain = onnxruntime.InferenceSession(MODELS / f"{name}.onnx", providers=["CPUExecutionProvider"])
    worst = 0.0
    for row in rows[-images:]:
        packed = pack_inputs({bundle.input.name: row.astype(np.float64)}, bundle)
        data = wire.dump_ciphertexts(p, {k: secret.encrypt(slots, *sent[k]) for k, slots in packed.items()})
        results = run(model.circuit, wire.load_ciphertexts(data, p, sent), evaluator)
        decrypted = secret.decrypt(results[output.name])
        logits = unpack(decrypted, output.packing)
        expected = plain.run(None, {"image": row[None]})[0][0]
        worst = max(worst, float(np.abs(logits - expected).max()))
        # The logits agree within the promise, so classes can differ only where plaintext itself is that undecided.
        top = np.sort(expected)[-2:]
        if top[1] - top[0] > 2 * output.promised_error:
            assert logits.argmax() == expected.argmax()
        # Slots that are not part of the answer hold copies of it, or nothing but noise.
        unused = np.ones(output.packing.period, dtype=bool)
        unused[output.packing.slots] = False
        spare = decrypted.reshape(-1, output.packing.period)[:, unused]
        assert np.abs(spare).max(initial=0.0) <= output.promised_error
    assert worst <= output.promised_error, (worst, output.promised_error)
    print(f"{name}: worst logit error {worst:.2e} of promised {output.promised_error:.2e}, {p}")
