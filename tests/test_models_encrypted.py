"""Each committed model, encrypted: the worst logit of some images, real keys, against ONNX Runtime and against the polynomial twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ckks import wire, wire_keys
from ckks.backends import make_backend
from ckks.encoded import EncodedWeights
from ckks.evaluator import CkksEvaluator
from ckks.expanded import expand_keys, map_keys
from ckks.interpreter import run
from compiler.compile import compile_model
from he_serve.packing import pack_inputs, unpack
from he_serve.trial import twin
from keys import SecretKey
from models.data import digits

MODELS = Path(__file__).resolve().parents[1] / "models"
IMAGES = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "images"),
    [("digits", IMAGES), ("digits_relu", 8), ("fashion", IMAGES), ("lesion", IMAGES), ("lesion64", 6)],
)
def test_encrypted_logits_agree(name: str, images: int, tmp_path: Path) -> None:
    rows = np.load(MODELS / "samples" / f"{name.removesuffix('_relu')}.npz")["x"].astype(np.float32)
    # Calibrated on one half, judged on the other; approximated activations need to have seen more than 32 rows.
    relu = name == "digits_relu"
    calibration = digits().train_images[:256] / 255.0 if relu else rows[: len(rows) // 2].astype(np.float64)
    model = compile_model(MODELS / f"{name}.onnx", calibration=calibration, name=name)
    bundle, p = model.bundle, model.bundle.checked_parameters()
    sent, output = bundle.input_ciphertexts, bundle.output
    secret = SecretKey.generate(p)
    wire_keys.dump_keys(tmp_path / "keys", secret.evaluation_keys(bundle.key_needs()))
    expand_keys(tmp_path / "keys", tmp_path / "expanded", p, bundle.key_needs())
    backend = make_backend(p, "cpu", threads=2)
    evaluator = CkksEvaluator(
        backend, map_keys(tmp_path / "expanded", p), EncodedWeights(backend, model.weights)
    )
    plain = onnxruntime.InferenceSession(MODELS / f"{name}.onnx", providers=["CPUExecutionProvider"])
    worst = worst_of_twin = 0.0
    for row in rows[-images:]:
        x = {bundle.input.name: row.astype(np.float64)}
        packed = pack_inputs(x, bundle)
        data = wire.dump_ciphertexts(p, {k: secret.encrypt(slots, *sent[k]) for k, slots in packed.items()})
        results = run(model.circuit, wire.load_ciphertexts(data, p, sent), evaluator)
        decrypted = secret.decrypt(results[output.name])
        logits = unpack(decrypted, output.packing)
        worst_of_twin = max(worst_of_twin, float(np.abs(logits - twin(model, [x])[0]).max()))
        expected = plain.run(None, {"image": row[None]})[0][0]
        worst = max(worst, float(np.abs(logits - expected).max()))
        # The logits agree within the promise, so classes can differ only where plaintext itself is that undecided.
        top = np.sort(expected)[-2:]
        if top[1] - top[0] > 2 * output.promised_error and not relu:
            assert logits.argmax() == expected.argmax()
        # Slots that are not part of the answer hold copies of it, or nothing but noise.
        unused = np.ones(output.packing.period, dtype=bool)
        unused[output.packing.slots] = False
        spare = decrypted.reshape(-1, output.packing.period)[:, unused]
        assert np.abs(spare).max(initial=0.0) <= output.promised_error
    if not relu:  # whose activations are approximated: it differs from the original by more than noise
        assert worst <= output.promised_error, (worst, output.promised_error)
    predicted = model.report["predicted_error"]
    print(
        f"{name}: worst {worst_of_twin:.2e} from the twin, {worst:.2e} from the original, {predicted=:.2e}, {p}"
    )
    assert worst_of_twin <= predicted <= 4 * worst_of_twin
