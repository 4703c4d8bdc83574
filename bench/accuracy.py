"""1,000 pictures a model, encrypted, beside the same circuit in the clear and the original network: `python -m bench.accuracy --json FILE`.

Counts classes, not seconds: it may run on a busy machine. Calibration rows are not among the pictures.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from bench import _common as common
from ckks.backends import make_backend
from ckks.encoded import EncodedWeights
from ckks.errors import HeError
from ckks.evaluator import CkksEvaluator
from ckks.expanded import expand_keys, map_keys
from ckks.interpreter import run
from ckks.modelfile import CompiledModel
from ckks.types import Slots
from ckks.wire import dump_ciphertexts, load_ciphertexts
from ckks.wire_keys import dump_keys
from compiler.compile import compile_model
from he_serve.packing import pack_inputs, unpack
from he_serve.plaintext import run_onnx
from he_serve.trial import twin
from keys import SecretKey
from models import data, lesions

IMAGES, CALIBRATION = 1000, 256


@dataclass(frozen=True, eq=False)
class Pictures:
    """x: float64 rows in [0, 1]; y: classes; held_out: how many at the start the network was not trained on."""

    calibration: npt.NDArray[np.float64]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.int64]
    held_out: int
    about: str


def digits() -> Pictures:
    """All 360 test pictures of the digits, then training pictures that are not used for calibration."""
    found = data.digits()
    x = np.concatenate([found.test_images, found.train_images[CALIBRATION:]])[:IMAGES]
    y = np.concatenate([found.test_labels, found.train_labels[CALIBRATION:]])[:IMAGES]
    about = f"scikit-learn digits: {len(found.test_images)} test pictures, the rest training pictures"
    return Pictures(
        found.train_images[:CALIBRATION] / 255.0, x / 255.0, y, min(len(found.test_images), IMAGES), about
    )


def lesion() -> Pictures:
    """Synthetic test lesions; calibrated with training lesions."""
    train, _ = lesions.dataset(CALIBRATION, data.LESION_TRAIN_SEED)
    x, y = lesions.dataset(IMAGES, data.LESION_TEST_SEED)
    first = [np.ascontiguousarray(images.transpose(0, 3, 1, 2)) / 255.0 for images in (train, x)]
    return Pictures(*first, y, IMAGES, "synthetic lesions of the test seed")


MODELS: dict[str, Callable[[], Pictures]] = {"digits": digits, "lesion": lesion, "digits_relu": digits}


def measure(name: str, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """One model's row. Raises HeError, UnfairComparisonError."""
    onnx, pictures = common.ROOT / "models" / f"{name}.onnx", MODELS[name]()
    say("compiling")
    model = compile_model(onnx, calibration=pictures.calibration, name=name)
    encrypted = encrypted_logits(model, pictures.x, threads, say)
    say("the same in the clear")
    clear = twin(model, [{model.bundle.input.name: x} for x in pictures.x])
    original = run_onnx(onnx, pictures.x)
    p, promised = model.bundle.checked_parameters(), model.bundle.promised_error
    common.require_secure(p)
    error = float(np.abs(encrypted - clear).max())
    common.require_precise(f"{name} against its twin", error, promised)
    classes = {"encrypted": encrypted.argmax(1), "twin": clear.argmax(1), "original": original.argmax(1)}
    ordered = np.sort(clear, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    differs = classes["encrypted"] != classes["twin"]
    held = slice(0, pictures.held_out)
    return {
        "name": name,
        "pictures": pictures.about,
        "parameters": str(p),
        "images": len(pictures.x),
        "held_out": pictures.held_out,
        "same_class_as_twin": int((classes["encrypted"] == classes["twin"]).sum()),
        "same_class_as_original": int((classes["encrypted"] == classes["original"]).sum()),
        "correct": {side: int((c == pictures.y).sum()) for side, c in classes.items()},
        "correct_held_out": {side: int((c == pictures.y)[held].sum()) for side, c in classes.items()},
        "worst_error": error,
        "predicted_error": model.report["predicted_error"],
        "promised_error": promised,
        "smallest_margin": float(margins.min()),
        "widest_margin_that_turned": float(margins[differs].max(initial=0.0)),
    }


def encrypted_logits(
    model: CompiledModel, rows: npt.NDArray[np.float64], threads: int, say: Callable[[str], None]
) -> Slots:
    """Logits of every row through keys, encryption, wire format, engine and decryption, float64 [rows][classes]."""
    bundle, p = model.bundle, model.bundle.checked_parameters()
    sent, output = bundle.input_ciphertexts, bundle.output
    say("making keys")
    secret = SecretKey.generate(p)
    weights = EncodedWeights(make_backend(p, "cpu", threads), model.weights)
    found = []
    with tempfile.TemporaryDirectory(prefix="he-serve-bench-") as name:
        uploaded, expanded = Path(name) / "keys.upload", Path(name) / "keys"
        dump_keys(uploaded, secret.evaluation_keys(bundle.key_needs()))
        expand_keys(uploaded, expanded, p, bundle.key_needs())
        evaluator = CkksEvaluator(weights.backend, map_keys(expanded, p), weights)
        for i, row in enumerate(rows):
            packed = pack_inputs({bundle.input.name: row}, bundle)
            request = dump_ciphertexts(p, {k: secret.encrypt(slots, *sent[k]) for k, slots in packed.items()})
            answers = run(model.circuit, load_ciphertexts(request, p, sent), evaluator)
            found.append(unpack(secret.decrypt(answers[output.name]), output.packing).reshape(-1))
            say(f"{i + 1} of {len(rows)} pictures")
    return np.array(found)


def _print(rows: list[dict[str, Any]]) -> None:
    lines = [
        [
            r["name"], str(r["images"]), str(r["same_class_as_twin"]),
            *(f"{r['correct_held_out'][side] / r['held_out']:.4f}" for side in ("encrypted", "twin", "original")),
            f"{r['worst_error']:.1e}", f"{r['predicted_error']:.1e}", f"{r['promised_error']:.1e}",
        ]
        for r in rows
    ]  # fmt: skip
    columns = [
        "model", "pictures", "same class as twin", "accuracy encrypted", "twin", "original", "worst error", "predicted", "promised",
    ]  # fmt: skip
    common.print_table("Classes; accuracies on the held-out pictures", columns, lines)


def main() -> int:
    """Run the suite; 1 if encryption loses a correct answer on balance, or turns one by more than its promise."""
    assert __doc__ is not None
    arguments = common.parse(__doc__, "bench.accuracy")
    try:
        with Console(stderr=True).status("starting") as status:
            say = lambda name: lambda phase: status.update(f"{name}: {phase}")  # noqa: E731
            rows = [measure(name, arguments.threads, say(name)) for name in MODELS]
    except (common.UnfairComparisonError, HeError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    report = {"machine": common.machine(), "commit": common.commit(), "rows": rows}
    common.write_report(arguments.json, report)
    _print(rows)
    lost = (r["correct"]["encrypted"] < r["correct"]["twin"] for r in rows)
    turned = (r["widest_margin_that_turned"] > 2 * r["promised_error"] for r in rows)
    return int(any(lost) or any(turned))


if __name__ == "__main__":
    sys.exit(main())
