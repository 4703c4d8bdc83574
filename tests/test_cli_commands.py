"""The command line as a user runs it: exit codes, one JSON object on standard output, one clear line for an error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import ModelBuilder
from serving import ROOT, Server, start_server

from ckks.modelfile import CompiledModel, save_model
from he_serve.keyfolder import KeyFolder

DIGITS = ROOT / "models" / "digits.onnx"
SAMPLES = ROOT / "models" / "samples" / "digits.npz"


def he_serve(*args: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "he_serve.cli", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if not k.startswith("HE_SERVE_")} | (env or {}),
    )


def answer(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    """The one JSON object that a command wrote."""
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout
    return dict(json.loads(lines[0]))


def refused(done: subprocess.CompletedProcess[str], code: int, text: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert text in done.stderr


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "x.npz"
    np.savez(path, x=np.array([[0.1, 0.2, 0.3], [-0.5, 0.5, 1.0]]))
    return path


@pytest.fixture(scope="module")
def hem(models_folder: Path) -> Path:
    return models_folder / "tiny.hem"


def test_compile_inspect_and_try(tmp_path: Path) -> None:
    samples = SAMPLES
    out = tmp_path / "numbers.hem"
    made = answer(he_serve("compile", DIGITS, "-o", out, "--calibrate", samples, "--json"))
    assert made["name"] == "numbers"
    assert made["security_bits"] >= 128
    assert made["layers"] and made["key_bytes"] > 0
    assert answer(he_serve("inspect", out, "--json"))["digest"] == made["digest"]
    listing = he_serve("inspect", out, "--circuit")
    assert listing.returncode == 0
    assert len(listing.stdout.splitlines()) == made["operations"]
    few = tmp_path / "few.npz"
    with np.load(samples) as archive:
        np.savez(few, x=archive["x"][:3])
    done = he_serve("try", DIGITS, "--input", few, "--calibrate", samples, "--json")
    tried = answer(done)
    assert tried["backend"] == "gpu" or done.stderr.count("running on the CPU: no GPU can be used") == 1
    fields = (
        "agrees max_error predicted_error promised_error original_error same_class security_bits n log_qp key_bytes ciphertext_bytes "
        "compile_s keygen_s predicted_s evaluate_s layers_s rows images_per_request backend threads peak_rss_bytes"
    )
    assert list(tried) == fields.split()
    assert tried["agrees"] is True and tried["same_class"] is True
    assert tried["max_error"] <= tried["predicted_error"] <= tried["promised_error"]
    assert tried["predicted_s"] > 0 and sum(tried["layers_s"].values()) == pytest.approx(tried["evaluate_s"])
    assert tried["rows"] == 3
    inspected = he_serve("inspect", out)
    for shown in ("predicted error", "latency, predicted", "server memory", "predicted"):
        assert shown in inspected.stdout


def test_try_takes_activations_and_writes_the_report(tmp_path: Path) -> None:
    b = ModelBuilder((1, 4, 4))
    x = b.node("Relu", b.conv("image", 1, 2))
    path = b.save(tmp_path / "m.onnx", b.dense(b.node("Flatten", x), 8, 3))
    np.savez(tmp_path / "x.npz", x=b.rows(4))
    page = tmp_path / "m.html"
    base = (
        "try",
        path,
        "--input",
        tmp_path / "x.npz",
        "--activation",
        "relu=degree:6",
        "--activation-error",
        "0.5",
    )
    tried = answer(he_serve(*base, "--threads", 1, "--report", page, "--json"))
    assert tried["agrees"] is True
    assert "Degree 6 by" in page.read_text() and "measured; predicted" in page.read_text()
    refused(he_serve("try", path, "--input", tmp_path / "x.npz", "--activation", "nonsense"), 2, "nonsense")
    refused(he_serve("try", path, "--input", tmp_path / "x.npz", "--machine", path), 2, "he-serve doctor")


@pytest.mark.parametrize(("options", "images"), [(("--batch", 4), 4), (("--layout", "batch"), 4096)])
def test_compile_for_many_images(tmp_path: Path, options: tuple[object, ...], images: int) -> None:
    samples, out = ROOT / "models" / "samples" / "digits.npz", tmp_path / "numbers.hem"
    made = answer(he_serve("compile", DIGITS, "-o", out, "--calibrate", samples, *options, "--json"))
    assert made["images_per_request"] == images and made["report"]["working_bytes"] > 0
    again = answer(he_serve("try", DIGITS, "--input", samples, *options, "--json"))
    assert again["agrees"] is True and again["same_class"] is True and again["images_per_request"] == images


def test_rows_share_requests(tmp_path: Path) -> None:
    samples = ROOT / "models" / "samples" / "digits.npz"
    (tmp_path / "models").mkdir()
    made = he_serve(
        "compile", DIGITS, "-o", tmp_path / "models" / "d.hem", "--calibrate", samples, "--batch", 32
    )
    assert made.returncode == 0, made.stderr
    with start_server(tmp_path / "models", tmp_path / "state") as server:
        options = ("--url", server.url, "--key-store", tmp_path / "keys", "--plain")
        predicted = answer(he_serve("predict", samples, *options, "--json"))["predictions"]
        assert [p["images"] for p in predicted] == [32] * 64
        shown = he_serve("predict", samples, *options)
        assert shown.returncode == 0 and "ms each" in shown.stdout, shown.stderr


def test_try_says_no_with_exit_code_1(tmp_path: Path, tiny: CompiledModel, rows: Path) -> None:
    output = tiny.bundle.output.model_copy(update={"promised_error": 1e-9})
    bundle = tiny.bundle.model_copy(update={"outputs": [output]})
    save_model(tmp_path / "proud.hem", CompiledModel(bundle, tiny.circuit, tiny.weights, {}))
    result = answer(he_serve("try", tmp_path / "proud.hem", "--input", rows, "--json"), 1)
    assert result["agrees"] is False
    assert result["original_error"] is None


def test_inspect_for_people(hem: Path) -> None:
    done = he_serve("inspect", hem)
    assert done.returncode == 0
    assert "128 bits" in done.stdout


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("inspect", "no-such.hem"), "no such file"),
        (("inspect", __file__), "not a compiled model"),
        (("compile", "no-such.onnx", "-o", "x.hem"), "no-such.onnx"),
        (("compile", __file__, "-o", "/nonexistent/x.hem"), ""),
        (("compile", DIGITS, "-o", "bad name.hem"), "bad name"),
        (("compile", DIGITS, "-o", "x.hem", "--batch", 3), "power of two"),
        (("compile", DIGITS, "-o", "x.hem", "--layout", "wide"), "latency or batch"),
        (("try", "model.txt", "--input", "x.npz"), "give an ONNX model"),
        (("try", DIGITS, "--input", "no-such.npz"), "no such file"),
        (("serve", "--models", "/nonexistent"), "no such folder"),
        (("serve", "--models", ".", "--device", "gpu"), "CuPy is missing"),
        (("try", DIGITS, "--input", SAMPLES, "--device", "gpu"), "pip install 'he-serve[gpu]'"),
        (("predict", "no-such.png", "--plain"), "no such file"),
        (("demo", "no-such.png"), "no such file"),
        (("predict", DIGITS.parent / "samples" / "digits.npz", "--plain", "--library", "abacus"), "abacus"),
    ],
)
def test_bad_input_is_exit_code_2(args: tuple[object, ...], text: str) -> None:
    refused(he_serve(*args), 2, text)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="OpenFHE may be installed")
def test_a_library_that_is_not_installed_is_named_before_anything_happens(tmp_path: Path) -> None:
    done = he_serve("keys", "new", "--plain", "--library", "openfhe", "--key-store", tmp_path / "keys")
    refused(done, 2, "Python 3.10")
    assert not (tmp_path / "keys").exists()


def test_primes_of_its_own_come_from_openfhe_only(tmp_path: Path, server: Server, rows: Path) -> None:
    options = ("--url", server.url, "--model", "tiny", "--key-store", tmp_path, "--plain", "--own-primes")
    refused(he_serve("predict", rows, *options), 2, "SEAL takes the primes")


def test_usage_errors_are_exit_code_2() -> None:
    for args in (
        ("compile",),
        ("nonsense",),
        ("serve", "--port", "x", "--models", "."),
        ("serve", "--models", ".", "--device", "abacus"),
    ):
        done = he_serve(*args)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_errors_are_json_too_where_asked_for() -> None:
    result = answer(he_serve("inspect", "no-such.hem", "--json"), 2)
    assert result["exit_code"] == 2
    assert "no such file" in result["error"]


def test_predict_and_keys(server: Server, tmp_path: Path, rows: Path) -> None:
    where = ("--url", server.url, "--model", "tiny", "--key-store", tmp_path)
    refused(he_serve("predict", rows, *where), 2, "HE_SERVE_PASSPHRASE")
    env = {"HE_SERVE_PASSPHRASE": "correct horse"}
    made = answer(he_serve("keys", "new", *where, "--json", env=env))
    assert made["model"] == "tiny" and made["security_bits"] >= 128
    result = answer(he_serve("predict", rows, *where, "--json", env=env))
    assert [p["label"] for p in result["predictions"]] == ["b", "a"] or len(result["predictions"]) == 2
    listed = answer(he_serve("keys", "list", "--key-store", tmp_path, "--json"))
    assert [k["servers"] for k in listed["keys"]] == [[server.url]]
    refused(he_serve("predict", rows, *where, env={"HE_SERVE_PASSPHRASE": "wrong"}), 2, "passphrase")
    rotated = answer(he_serve("keys", "rotate", *where, "--json", env=env))
    assert rotated["key_id"] != made["key_id"] and rotated["bundle_digest"] == made["bundle_digest"]
    folder = KeyFolder(tmp_path, None)
    folder.set_pin(
        server.url, "tiny", "0" * 64
    )  # as if the server had another bundle than the one remembered
    refused(he_serve("keys", "rotate", *where, env=env), 3, "keys new")
    folder.set_pin(server.url, "tiny", made["bundle_digest"])
    assert answer(he_serve("keys", "revoke", *where, "--json"))["revoked"] is True
    assert answer(he_serve("keys", "revoke", *where, "--json"), 1)["revoked"] is False
    assert answer(he_serve("keys", "list", "--key-store", tmp_path, "--json"))["keys"][0]["servers"] == []


def test_a_server_that_is_not_there_is_exit_code_3(tmp_path: Path, rows: Path) -> None:
    refused(
        he_serve("predict", rows, "--url", "http://127.0.0.1:9", "--plain", "--key-store", tmp_path),
        3,
        "he-serve serve",
    )


def test_serve_tells_its_url_and_stops_on_sigterm(models_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "he_serve.cli", "serve", "--port", "0", "--json"]
    command += ["--models", str(models_folder), "--state", str(tmp_path / "state")]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert json.loads(output.readline())["url"].startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert output.read() == ""
