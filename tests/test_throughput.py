"""The throughput layout: one slot per image. In the clear on random networks, encrypted on the digits model, over HTTP."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_models import ModelBuilder, onnx_outputs
from samples import random_residues
from serving import PROBLEM, ROOT, start_server
from test_compiler_operators import clear_outputs

from ckks.backends import make_backend
from ckks.bundle import Bundle
from ckks.circuit import Circuit, Op
from ckks.cleartext import CleartextEvaluator
from ckks.counting import CountedValue, CountingEvaluator
from ckks.errors import CircuitError, EvaluationError, FormatError, ModelError
from ckks.evaluator import CkksEvaluator
from ckks.interpreter import run
from ckks.modelfile import CompiledModel, circuit_bytes, load_model, save_model
from ckks.types import Ciphertext, EvaluationKeys, SeededCiphertext
from ckks.verify import verify
from ckks.wire import ciphertext_limit, dump_ciphertext, load_stack
from compiler import throughput
from compiler.compile import compile_model
from he_serve.client import Client
from he_serve.images import read_rows
from he_serve.plaintext import run_onnx
from he_serve.trial import try_model

DIGITS = ROOT / "models" / "digits.onnx"
ROWS = read_rows(ROOT / "models" / "samples" / "digits.npz")


def many(count: int) -> np.ndarray:
    """Digits, each a little different: mixtures of two pictures, but for those that are as much the one as the other."""
    draw = np.random.default_rng(3)
    share = draw.uniform(0, 1, (2 * count, 1, 1, 1))
    a, b = (ROWS[draw.integers(0, len(ROWS), 2 * count)] for _ in range(2))
    mixed = share * a + (1 - share) * b
    first, second = np.sort(run_onnx(DIGITS, mixed), axis=1)[:, [-1, -2]].T
    return mixed[first - second > UNDECIDED][:count]


UNDECIDED = 0.02  # several times the promised error


@pytest.fixture(scope="module")
def digits() -> CompiledModel:
    return compile_model(DIGITS, calibration=ROWS, layout="batch", name="digits")


@given(
    size=st.integers(2, 6),
    channels=st.integers(1, 3),
    outputs=st.integers(1, 9),
    kind=st.sampled_from(["dense", "convolution", "residual", "cubic", "unused"]),
    chunk=st.sampled_from([2, 7, 256]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_random_networks_in_the_clear(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    channels: int,
    outputs: int,
    kind: str,
    chunk: int,
    seed: int,
) -> None:
    b = ModelBuilder((channels, size, size), seed)
    x = b.conv("image", channels, channels, 3, pads=[1, 1, 1, 1])
    if kind == "convolution":
        x = b.conv(b.quadratic(x, channels), channels, channels, 3, pads=[1, 1, 1, 1])
    elif kind == "residual":
        x = b.node("Add", x, b.conv(b.quadratic(x, channels), channels, channels, 3, pads=[1, 1, 1, 1]))
        x = b.node("Mul", x, b.conv("image", channels, channels, 1))
    elif kind == "unused":  # all rows but the first
        ends = [b.constant(np.array([k], dtype=np.int64)) for k in (0, 1, 2)]
        x = b.node("Slice", b.quadratic(x, channels), *ends)
        x = b.node("Concat", *[x] * size, axis=2)
    elif kind == "cubic":
        x = b.node("Add", b.node("Mul", x, b.node("Mul", x, x)), x)
    x = b.dense(b.node("Flatten", b.quadratic(x, channels)), channels * size * size, outputs)
    path = b.save(tmp_path_factory.mktemp("batch") / "m.onnx", x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "CHUNK", chunk)
        model = compile_model(path, layout="batch", name="m")
    assert model.bundle.input.packing.members == channels * size * size
    assert not model.bundle.rotations
    rows = b.rows(7)
    expected = onnx_outputs(path, rows)
    exact = clear_outputs(model, rows)
    assert np.abs(exact - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    assert np.abs(clear_outputs(model, rows, seed=8) - exact).max() <= model.bundle.promised_error


def test_three_thousand_digits(digits: CompiledModel) -> None:
    rows = many(3000)
    result = try_model(digits, rows, lambda x: run_onnx(DIGITS, x), 2, lambda *_: None)
    assert result["agrees"] and result["same_class"] and result["rows"] == 3000
    assert result["images_per_request"] == digits.bundle.checked_parameters().slots
    assert result["original_error"] <= digits.bundle.promised_error


def test_over_http(digits: CompiledModel, tmp_path: Path) -> None:
    """Two requests: all slots, and some. Nothing stays in the spool; a body longer than announced by the bundle is refused."""
    (tmp_path / "models").mkdir()
    save_model(tmp_path / "models" / "digits.hem", digits)
    assert load_model(tmp_path / "models" / "digits.hem").circuit == digits.circuit
    rows = many(4096 + 5)
    clear = run_onnx(DIGITS, rows)
    spec = digits.bundle.input
    limit = ciphertext_limit(digits.bundle.checked_parameters(), spec.level, spec.packing.members)
    with (
        start_server(tmp_path / "models", tmp_path / "state", threads=2) as server,
        Client(server.url) as client,
    ):
        raw = client.predict_many_raw(rows)
        assert raw[0]["logits"].images == 4096 and raw[-1]["logits"].images == 5
        worst = max(np.abs(r["logits"].logits - c).max() for r, c in zip(raw, clear, strict=True))
        assert worst <= digits.bundle.promised_error
        assert [r["logits"].logits.argmax() for r in raw] == clear.argmax(axis=1).tolist()
        headers = {
            "Content-Type": "application/octet-stream",
            "Key-Id": client.ensure_keys(),
            "Bundle-Digest": digits.bundle.digest,
        }
        infer = "/v2/models/digits/infer"
        for body, status in ((bytes(1000), 422), (bytes(limit + 1), 413)):
            answer = server.http.post(infer, content=body, headers=headers)
            assert answer.status_code == status and answer.headers["content-type"] == PROBLEM
        assert not list((tmp_path / "state" / "spool").iterdir())


def test_a_square_is_relinearised_after_summing(digits: CompiledModel) -> None:
    """256 squares, 10 sums of them: the matrix is applied to three polynomials."""
    ops = [i.op for i in digits.circuit.instructions]
    assert ops[ops.index(Op.MULTIPLY) + 1] is Op.MATRIX
    members = digits.circuit.members()
    assert members[ops.index(Op.RELINEARISE)] == 10 and members[0] == 64
    counting = CountingEvaluator(digits.bundle.checked_parameters())
    run(digits.circuit, {"image": CountedValue(digits.bundle.input.level, 64)}, counting)
    operations = counting.cost.operations
    assert (
        operations["relinearise"] == 10 and operations["multiply"] == 256 and operations["key_product"] == 10
    )
    assert operations["scalar_product"] == sum(i.products for i in digits.circuit.instructions)


def test_operations_on_stacks_agree_with_the_clear(digits: CompiledModel) -> None:
    """A matrix adds up noise that is there, and in simulation only its own rounding comes to it."""
    p = digits.bundle.checked_parameters()
    weights = {"w": np.array([[1.0, -2.0, 0.0], [0.25, 0.0, 1 / 3]]), "c": np.array([0.5, -1.0, 2.0])}
    exact = CleartextEvaluator(p, weights)
    x = exact.encrypt_stack(np.arange(12.0).reshape(3, 4), 2, 2.0**26)
    y = exact.matrix([exact.add_plain(x, "c")], "w", 2.0**20, 2, 4)
    assert np.array_equal(y.slots, weights["w"] @ (x.slots + weights["c"][:, None])) and y.stacked
    assert (y.level, y.scale) == (2, 2.0**46)
    assert np.array_equal(exact.multiply_plain(x, "c", 8.0).slots, x.slots * weights["c"][:, None])
    noisy = CleartextEvaluator(p, weights, np.random.default_rng(1))
    rounded = noisy.matrix([x], "w", 2.0**10, 2, 4).slots - weights["w"] @ x.slots
    assert np.allclose(rounded[1], (np.rint(2**10 / 3) / 2**10 - 1 / 3) * x.slots[2]) and not rounded[0].any()


def changed(model: CompiledModel, index: int, **fields: object) -> CompiledModel:
    instructions = list(model.circuit.instructions)
    instructions[index] = replace(instructions[index], **fields)  # type: ignore[arg-type]
    return CompiledModel(model.bundle, Circuit(model.circuit.slots, tuple(instructions)), model.weights, {})


def test_the_verifier_knows_stacks(digits: CompiledModel) -> None:
    verify(digits.circuit, digits.bundle, digits.weights)
    ops = [i.op for i in digits.circuit.instructions]
    matrix, plain = ops.index(Op.MATRIX), ops.index(Op.ADD_PLAIN)
    wrong = [
        changed(digits, 0, members=63),
        changed(digits, 0, members=-1),
        changed(digits, 0, members=0),
        changed(digits, matrix, members=255),
        changed(digits, matrix, products=1),
        changed(digits, matrix, weight_scale=0.5),
        changed(digits, matrix, weight="w1"),
        changed(digits, plain, weight="w3"),
        changed(digits, ops.index(Op.RESCALE), op=Op.ROTATE, steps=1, level=3),
    ]
    for model in wrong:
        with pytest.raises(CircuitError):
            verify(model.circuit, model.bundle, model.weights)
    single = digits.bundle.model_dump()
    single["outputs"][0]["packing"]["shape"] = [5, 2]
    verify(digits.circuit, Bundle.model_validate(single), digits.weights)
    single["outputs"][0]["packing"]["shape"] = [9]
    single["outputs"][0]["labels"] = []
    with pytest.raises(CircuitError, match="stack"):
        verify(digits.circuit, Bundle.model_validate(single), digits.weights)
    assert Circuit.from_json(digits.circuit.to_json()) == digits.circuit and circuit_bytes(digits.circuit)


def test_stacks_on_the_wire(digits: CompiledModel, tmp_path: Path) -> None:
    p, draw = digits.bundle.checked_parameters(), np.random.default_rng(1)
    level, scale, rows = 1, 2.0**26, p.data_rows(1)
    stack = SeededCiphertext(random_residues(p, (3,), rows, draw), draw.bytes(32), level, scale)
    data = dump_ciphertext(p, stack)
    assert len(data) <= ciphertext_limit(p, level, 3) // 2 + 2048
    (tmp_path / "body").write_bytes(data)
    for source in (data, tmp_path / "body"):
        loaded = load_stack(source, p, level, scale, 3)
        assert loaded.polys.shape == (3, 2, 2, p.degree) and np.array_equal(loaded.polys[:, 0], stack.b)
        assert not np.array_equal(loaded.polys[0, 1], loaded.polys[1, 1])
        again = dump_ciphertext(p, loaded)
        assert np.array_equal(load_stack(again, p, level, scale, 3).polys, loaded.polys)
        for members in (1, 2, 4):
            with pytest.raises(FormatError):
                load_stack(source, p, level, scale, members)
    for start in range(0, 600, 7):
        damaged = bytearray(data)
        damaged[start] ^= 0x15
        (tmp_path / "body").write_bytes(damaged)
        for source in (bytes(damaged), tmp_path / "body", data[: 50 * start]):
            with contextlib.suppress(FormatError):
                load_stack(source, p, level, scale, 3)


def test_what_the_batch_layout_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leave the batch size out"):
        compile_model(DIGITS, layout="batch", batch=8, name="m")
    b = ModelBuilder((1, 200, 200))
    x = b.node("AveragePool", "image", kernel_shape=[2, 2], strides=[2, 2])
    with pytest.raises(ModelError, match="40000 elements would be as many ciphertexts"):
        compile_model(b.save(tmp_path / "m.onnx", x), layout="batch", name="m")


def test_a_single_ciphertext_is_no_stack(digits: CompiledModel) -> None:
    p = digits.bundle.checked_parameters()
    evaluator = CkksEvaluator(make_backend(p), EvaluationKeys(p, None, {}), digits.weights)
    one = Ciphertext(np.zeros((2, 4, p.degree), np.uint64), 3, 2.0**26)
    two = Ciphertext(np.zeros((2, 2, 4, p.degree), np.uint64), 3, 2.0**26)
    for call in (
        lambda: evaluator.matrix([two, one], "w0", 2.0**20, 256, 1),
        lambda: evaluator.rotate(two, 1),
        lambda: evaluator.add(one, two),
        lambda: evaluator.multiply(one, two),
    ):
        with pytest.raises(EvaluationError):
            call()
