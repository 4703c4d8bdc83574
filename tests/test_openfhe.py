"""What needs OpenFHE's wheel runs on a Python 3.10 of its own: the files below, and a client against a server on this Python."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from serving import ROOT, start_server

from bench._openfhe import INTERPRETER, find_python
from ckks.modelfile import save_model
from ckks.parameters import Parameters
from compiler.compile import compile_model
from he_serve.client import Client
from he_serve.images import read_rows
from he_serve.plaintext import run_onnx

pytestmark = [
    pytest.mark.openfhe,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(INTERPRETER not in os.environ, reason=f"{INTERPRETER} names no Python 3.10"),
]
MODELS = ROOT / "models"


@pytest.fixture(scope="module")
def python310() -> Path:
    python = find_python()
    assert python is not None
    return python


@pytest.mark.parametrize("name", ["test_openfhe_bytes.py", "test_openfhe_keys.py", "test_openfhe_oracle.py"])
def test_on_python_310(python310: Path, name: str) -> None:
    # Without the other tests' fixtures, which need the compiler's packages.
    options = ("-q", "-p", "no:cacheprovider", "--noconftest")
    command = [str(python310), "-m", "pytest", *options, str(ROOT / "tests" / name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-5000:] + done.stderr[-2000:]


_CLIENT = """
import json, sys
import numpy as np
from he_serve.client import Client
url, rows, library, primes = sys.argv[1:]
options = {"library": library, "own_primes": primes == "own"}
if primes == "adopted":
    # The key of a program that made its context as OpenFHE's users do.
    sys.path.insert(0, "tests")
    from openfhe_side import make_context
    from keys.openfhe import adopt
    options = {"secret_key": adopt(make_context(8192, 3, 36, 26, 4).KeyGen().secretKey)}
with Client(url, **options) as client:
    found = [client.predict_raw(row).logits.tolist() for row in np.load(rows)["x"]]
    label = client.predict(np.load(rows)["x"][0]).label
    parameters = client.bundle().parameters
loaded = "openfhe" in sys.modules
print(json.dumps({"version": sys.version_info[:2], "logits": found, "label": label, "loaded": loaded, "parameters": parameters}))
"""


def test_clients_of_either_library_get_the_same_answers(python310: Path, tmp_path: Path) -> None:
    """One server, one model, the same pictures over HTTP.

    OpenFHE's keys on Python 3.10: on primes that it chose for the model, of a context that another program made, and on the model's
    primes; SEAL's here and there.
    """
    rows = read_rows(MODELS / "samples" / "digits.npz")
    (tmp_path / "models").mkdir()
    model = compile_model(MODELS / "digits.onnx", calibration=rows, name="digits")
    save_model(tmp_path / "models" / "digits.hem", model)
    promised = model.bundle.promised_error
    np.savez(tmp_path / "rows.npz", x=rows[:3])
    clear = run_onnx(MODELS / "digits.onnx", rows[:3])
    with start_server(tmp_path / "models", tmp_path / "state", threads=2) as server:
        labels = []
        for library, primes in (
            ("openfhe", "own"),
            ("openfhe", "adopted"),
            ("openfhe", "model's"),
            ("seal", "model's"),
        ):
            command = [str(python310), "-c", _CLIENT, server.url, str(tmp_path / "rows.npz"), library, primes]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            answer = json.loads(done.stdout)
            assert answer["version"] == [3, 10] and answer["loaded"] == (library == "openfhe")
            assert np.abs(np.array(answer["logits"]) - clear).max() <= promised
            labels.append((answer["label"], *np.array(answer["logits"]).argmax(axis=1)))
            used, own = Parameters.from_json(answer["parameters"]), model.bundle.checked_parameters()
            if primes != "model's":
                assert used.data_primes != own.data_primes
                assert {p.bit_length() for p in used.special_primes} == {60}
            else:
                assert used == own
        with Client(server.url) as client:
            logits = np.stack([client.predict_raw(row).logits for row in rows[:3]])
            assert np.abs(logits - clear).max() <= promised
            labels.append((client.predict(rows[0]).label, *logits.argmax(axis=1)))
        assert len(set(labels)) == 1
