"""Activation functions as polynomials: fits against known errors, networks against ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev
from onnx_models import ModelBuilder, onnx_outputs
from test_compiler_operators import clear_outputs

from ckks.circuit import Op
from ckks.errors import ModelError
from ckks.modelfile import CompiledModel
from compiler.approximate import MIN_ROWS, Override, approximate, forward, interval, parse_override
from compiler.compile import compile_model
from compiler.fit import POINTS, density, fit, grid
from compiler.onnx_import import load_onnx
from compiler.operators import build_graph
from compiler.remez import minimax
from compiler.rows import flat_rows
from compiler.validation import classes_of

MODELS = Path(__file__).resolve().parents[1] / "models"


# Powell 1981, "Approximation Theory and Methods": |x| by a parabola errs by 1/8, x^n by lower degrees by 2^(1-n);
# Varga and Carpenter 1985 give 0.0676 for |x| in degree 4; exp on [-1, 1]: 0.2788, 0.04502, 0.005528.
@pytest.mark.parametrize(
    ("function", "degree", "error"),
    [
        (np.abs, 2, 1 / 8),
        (np.abs, 4, 0.0676209),
        (lambda x: x**5, 4, 2.0**-4),
        (lambda x: x**9, 8, 2.0**-8),
        (np.exp, 1, 0.278802),
        (np.exp, 2, 0.0450174),
        (np.exp, 3, 0.00552837),
    ],
)
def test_remez_finds_the_known_minimax_errors(
    function: Callable[[np.ndarray], np.ndarray], degree: int, error: float
) -> None:
    points = np.linspace(-1, 1, 4001)
    coefficients = minimax(points, function(points), degree)
    assert coefficients is not None and len(coefficients) == degree + 1
    worst = np.abs(chebyshev.chebval(points, coefficients) - function(points)).max()
    assert worst == pytest.approx(error, rel=1e-4)


def test_minimax_is_taken_where_it_costs_little_and_depth_buys_precision() -> None:
    values, even = np.tanh(3 * grid())[:, None], np.full(64, 1 / 64)
    fits = [fit(values, even, depth) for depth in (2, 3, 4)]
    assert [f.method for f in fits if f] == ["minimax"] * 3
    assert [len(f.coefficients) - 1 for f in fits if f] == [
        3,
        7,
        15,
    ]  # odd: the even powers would lead by nothing
    worst = [f.worst for f in fits if f]
    assert worst[0] > 4 * worst[1] > 16 * worst[2]
    assert fit(values, even, 1) is None  # a parabola is only a line here
    relu = fit(np.maximum(grid(), 0)[:, None], even, 2)
    assert relu is not None and (len(relu.coefficients), relu.depth) == (5, 2)


def test_least_squares_follows_the_values_that_occur() -> None:
    values = np.maximum(grid(), 0)[:, None]
    narrow = density(np.random.default_rng(0).normal(0, 0.1, 10_000), -1, 1)
    near = fit(values, narrow, 2)
    wide = fit(values, np.full(64, 1 / 64), 2)
    assert near is not None and wide is not None
    middle = np.abs(grid()) < 0.2
    errors = [np.abs(chebyshev.chebval(grid(), f.coefficients[:, 0]) - values[:, 0]) for f in (near, wide)]
    assert errors[0][middle].max() < 0.7 * errors[1][middle].max()
    assert errors[0].max() < 0.5  # still bounded over the whole interval


Make = Callable[[ModelBuilder, str], str]


def _gelu(b: ModelBuilder, x: str) -> str:
    """As PyTorch's exporter writes it."""
    e = b.node("Erf", b.node("Div", x, b.constant(math.sqrt(2))))
    return b.node("Mul", b.node("Mul", x, b.node("Add", e, b.constant(1.0))), b.constant(0.5))


def _gelu_by_tanh(b: ModelBuilder, x: str) -> str:
    """As TorchScript's exporter writes it."""
    cube = b.node("Mul", b.node("Pow", x, b.constant(3.0)), b.constant(0.044715))
    t = b.node("Tanh", b.node("Mul", b.node("Add", x, cube), b.constant(math.sqrt(2 / math.pi))))
    return b.node("Mul", b.node("Mul", x, b.constant(0.5)), b.node("Add", t, b.constant(1.0)))


def _softplus_by_where(b: ModelBuilder, x: str) -> str:
    """As PyTorch's newer exporter writes it."""
    return b.node("Where", b.node("Greater", x, b.constant(20.0)), x, b.node("Softplus", x))


# ThresholdedRelu jumps: no polynomial follows it well. The bound is on the worst output of a random network over its spread.
ACTIVATIONS: dict[str, tuple[Make, float]] = {
    "Relu": (lambda b, x: b.node("Relu", x), 0.15),
    "LeakyRelu": (lambda b, x: b.node("LeakyRelu", x, alpha=0.1), 0.15),
    "PRelu": (lambda b, x: b.node("PRelu", x, b.constant(np.array([0.1, 0.3, 0.5]).reshape(3, 1, 1))), 0.15),
    "Clip": (lambda b, x: b.node("Clip", x, b.constant(np.float32(0)), b.constant(np.float32(1))), 0.2),
    "Sigmoid": (lambda b, x: b.node("Sigmoid", x), 0.02),
    "Tanh": (lambda b, x: b.node("Tanh", x), 0.05),
    "Silu": (lambda b, x: b.node("Mul", x, b.node("Sigmoid", x)), 0.02),
    "Gelu as Erf": (_gelu, 0.03),
    "HardSigmoid": (lambda b, x: b.node("HardSigmoid", x), 0.05),
    "HardSwish": (lambda b, x: b.node("HardSwish", x), 0.05),
    "Elu": (lambda b, x: b.node("Elu", x), 0.05),
    "Selu": (lambda b, x: b.node("Selu", x), 0.1),
    "Softplus": (lambda b, x: b.node("Softplus", x), 0.02),
    "Softsign": (lambda b, x: b.node("Softsign", x), 0.1),
    "Exp": (lambda b, x: b.node("Exp", x), 0.02),
    "Gelu by Tanh": (_gelu_by_tanh, 0.03),
    "Softplus by Where": (_softplus_by_where, 0.02),
    "Softsign by Div": (
        lambda b, x: b.node("Div", x, b.node("Add", b.constant(1.0), b.node("Abs", x))),
        0.1,
    ),
    "Sigmoid by Exp": (
        lambda b, x: b.node("Reciprocal", b.node("Add", b.constant(1.0), b.node("Exp", b.node("Neg", x)))),
        0.02,
    ),
    "Relu by Max": (lambda b, x: b.node("Max", b.constant(np.zeros(1)), x), 0.15),
    "LeakyRelu by Where": (
        lambda b, x: b.node(
            "Where", b.node("Less", b.constant(0.0), x), x, b.node("Mul", x, b.constant(0.1))
        ),
        0.15,
    ),
    "residual Relu": (lambda b, x: b.node("Add", b.node("Relu", x), x), 0.15),
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation(name: str, tmp_path: Path) -> None:
    """One activation between a convolution and a dense layer: one polynomial, close to ONNX Runtime on unseen rows."""
    make, bound = ACTIVATIONS[name]
    b = ModelBuilder((2, 5, 5))
    x = make(b, b.batch_norm(b.conv("image", 2, 3), 3))
    path = b.save(tmp_path / "m.onnx", b.dense(b.node("Flatten", x), 27, 4))
    model = compile_model(path, calibration=b.rows(128).astype(np.float64), activation_error=0.01, name="m")
    found = model.report["activations"]["fits"]
    assert len(found) == 1 and found[0]["levels"] <= 4
    rows = b.rows(64)
    expected = onnx_outputs(path, rows)
    got = clear_outputs(model, rows)
    assert np.abs(got - expected).max() <= bound * np.ptp(expected)
    noisy = clear_outputs(model, rows[:8], seed=5)
    assert np.abs(noisy - got[:8]).max() <= model.bundle.promised_error


def test_per_channel_slopes_are_fitted_apart(tmp_path: Path) -> None:
    """PRelu's channels share a polynomial's depth and interval, not its coefficients; a slope of 1 is exact."""
    b = ModelBuilder((2, 4, 4))
    x = b.node("PRelu", "image", b.constant(np.array([0.0, 1.0]).reshape(2, 1, 1)))
    graph = build_graph(load_onnx(b.save(tmp_path / "m.onnx", b.node("Flatten", x))))
    rows = np.random.default_rng(0).uniform(-1, 1, (50, 32))
    out = forward(approximate(graph, rows, calibrated=True).graph, rows)
    assert np.abs(out[:, 16:] - rows[:, 16:]).max() < 1e-9
    error = np.abs(out[:, :16] - np.maximum(rows[:, :16], 0)).max()
    assert 1e-4 < error < 0.1


@settings(max_examples=8, deadline=None)
@given(
    degree=st.integers(2, 16),
    bound=st.floats(0.1, 50),
    seed=st.integers(0, 2**31),
)
def test_circuits_evaluate_what_was_fitted(
    degree: int, bound: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exact scale and level bookkeeping of every degree: the circuit in the clear equals the fitted graph to rounding."""
    folder = tmp_path_factory.mktemp("m")
    b = ModelBuilder((1, 3, 3), seed=seed)
    x = b.node("Mul", b.batch_norm(b.conv("image", 1, 2, kernel=2), 2), b.constant(bound / 3))
    path = b.save(folder / "m.onnx", b.dense(b.node("Flatten", b.node("Softplus", x)), 8, 3))
    rows = b.rows(40).astype(np.float64)
    fixed = {"softplus": Override(degree, bound)}
    model = compile_model(path, calibration=rows, activations=fixed, precision=0.5, name="m")
    assert model.report["activations"]["fits"][0]["degree"] == degree
    fitted = approximate(build_graph(load_onnx(path)), rows.reshape(40, -1), calibrated=True, overrides=fixed)
    expected = forward(fitted.graph, rows.reshape(40, -1))
    assert np.abs(clear_outputs(model, rows) - expected).max() <= 1e-8 * max(np.abs(expected).max(), 1)


def test_degrees_of_powers_of_two_cost_no_level_for_their_leading_coefficient(tmp_path: Path) -> None:
    levels = []
    for degree in (2, 3, 4, 7, 8, 15):
        b = ModelBuilder((1, 4, 4))
        x = b.node("Relu", b.conv("image", 1, 2))
        path = b.save(tmp_path / "m.onnx", b.dense(b.node("Flatten", x), 8, 2))
        rows = b.rows(40).astype(np.float64)
        model = compile_model(
            path, calibration=rows, activations={"relu": Override(degree)}, precision=0.1, name="m"
        )
        levels.append(model.bundle.input.level - 1)  # the output is not rescaled
    assert levels == [1, 2, 2, 3, 3, 4]


def test_elements_that_do_not_vary(tmp_path: Path) -> None:
    """A channel whose BatchNorm has scale zero gives a constant, and no level more."""
    b = ModelBuilder((1, 4, 4))
    gains = [b.constant(np.array(v)) for v in ([1.0, 0.0], [-0.7, 0.7], [0.0, 0.0], [1.0, 1.0])]
    x = b.node("Relu", b.node("BatchNormalization", b.conv("image", 1, 2), *gains))
    path = b.save(tmp_path / "m.onnx", b.dense(b.node("Flatten", x), 8, 2))
    rows = b.rows(40)
    model = compile_model(
        path, calibration=rows.astype(np.float64), activations={"relu": Override(4)}, name="m"
    )
    assert model.bundle.input.level == 4
    expected = onnx_outputs(path, rows)
    assert np.abs(clear_outputs(model, rows) - expected).max() < 0.25 * np.ptp(expected)


def test_a_gate_that_saturates_is_a_constant(tmp_path: Path) -> None:
    """Where calibration shows nothing but the flat end of a hard sigmoid, what is computed of it costs no level."""
    b = ModelBuilder((1, 4, 4))
    x = b.conv("image", 1, 2)
    gate = b.node("HardSigmoid", b.node("Sub", b.node("GlobalAveragePool", x), b.constant(50.0)))
    gate = b.node("HardSigmoid", b.conv(gate, 2, 2, 1))
    path = b.save(tmp_path / "m.onnx", b.dense(b.node("Flatten", b.node("Mul", x, gate)), 8, 2))
    rows = b.rows(40)
    model = compile_model(path, calibration=rows.astype(np.float64), name="m")
    assert model.bundle.input.level == 0
    assert np.abs(clear_outputs(model, rows) - onnx_outputs(path, rows)).max() < 1e-5


def test_a_relu_that_never_cuts_costs_nothing(tmp_path: Path) -> None:
    b = ModelBuilder((1, 4, 4))
    x = b.node("Relu", b.node("Add", "image", b.constant(1.0)))
    path = b.save(tmp_path / "m.onnx", b.dense(b.node("Flatten", x), 16, 2))
    rows = b.rows(40)
    model = compile_model(path, calibration=rows.astype(np.float64), name="m")
    assert model.bundle.input.level == 0
    assert np.abs(clear_outputs(model, rows) - onnx_outputs(path, rows)).max() < 1e-5


def small(folder: Path) -> tuple[ModelBuilder, Path]:
    b = ModelBuilder((1, 4, 4))
    x = b.node("Relu", b.conv("image", 1, 2))
    return b, b.save(folder / "m.onnx", b.dense(b.node("Flatten", b.node("Tanh", x)), 8, 2))


def test_no_calibration_is_refused_with_advice(tmp_path: Path) -> None:
    b, path = small(tmp_path)
    with pytest.raises(ModelError, match=r"Tanh_2.*--calibrate"):
        compile_model(path, name="m")
    known = {"tanh": Override(bound=4.0)}
    model = compile_model(path, activations=known, name="m")  # a range given by hand is a range
    assert model.report["activations"]["fits"][0]["interval"] == [-4.0, 4.0]
    assert b.shape == (1, 4, 4)


def test_few_calibration_rows_are_refused(tmp_path: Path) -> None:
    b, path = small(tmp_path)
    rows = b.rows(31).astype(np.float64)
    with pytest.raises(ModelError, match=r"31 calibration rows are too few.*--activation"):
        compile_model(path, calibration=rows, name="m")
    compile_model(path, calibration=rows, activations={"relu": Override(bound=3.0)}, name="m")
    compile_model(path, calibration=rows, own_rows=True, name="m")


def test_files_sorted_by_class_calibrate_as_others_do(tmp_path: Path) -> None:
    """Of more rows than are used, the last ones count as much as the first."""
    b, path = small(tmp_path)
    graph = build_graph(load_onnx(path))
    rows = np.concatenate([b.rows(5000) / 10, b.rows(5000)])
    chosen = flat_rows(graph, rows, "calibration", 1000)
    assert len(chosen) == 1000 and (chosen[:500].max(), chosen[500:].max()) == pytest.approx(
        (0.1, 1.0), rel=0.01
    )


def test_intervals_hold_new_rows_however_few_calibrated() -> None:
    """Light, exponential and one-sided tails; 1,000 rows at most are a fair number, so that one in 1,000 may leave on each side."""
    draw = np.random.default_rng(0)
    tails: dict[str, Callable[[int], np.ndarray]] = {
        "normal": lambda n: draw.normal(0, 1, (n, 50)),
        "laplace": lambda n: draw.laplace(0, 1, (n, 50)),
        "one-sided": lambda n: draw.exponential(1, (n, 50)),
        "uniform": lambda n: draw.uniform(-1, 1, (n, 50)),
    }
    for name, tail in tails.items():
        for count in (MIN_ROWS, 128, 1000):
            shares = []
            for _ in range(10):
                low, high = interval(tail(count))
                new = tail(2000)
                shares.append(((new < low) | (new > high)).any(axis=1).mean())
            assert np.mean(shares) < (0.01 if count == MIN_ROWS else 0.004), (name, count)
    low, high = interval(np.linspace(-1, 1, 64).reshape(64, 1).repeat(20, 0))
    assert (low, high) == pytest.approx((-1.15, 1.15))  # from 1,280 rows: the margin alone


def test_the_bound_on_inputs_outside_counts_layers_and_rows(tmp_path: Path) -> None:
    b, path = small(tmp_path)
    graph, rows = build_graph(load_onnx(path)), b.rows(99).reshape(99, -1).astype(np.float64)
    assert approximate(graph, rows, calibrated=True).outside_bound == 0.02  # one curve: tanh of relu
    fixed = approximate(graph, rows, calibrated=True, overrides={"relu": Override(bound=4.0)})
    assert fixed.outside_bound is None


def test_overrides(tmp_path: Path) -> None:
    b, path = small(tmp_path)
    rows = b.rows(40).astype(np.float64)
    name, fixed = parse_override("Tanh_2=degree:5,range:3.5")
    assert (name, fixed) == ("Tanh_2", Override(5, 3.5))
    model = compile_model(path, calibration=rows, activations={name: fixed}, name="m")
    (found,) = model.report["activations"]["fits"]
    assert (found["degree"], found["interval"], found["operators"]) == (5, [-3.5, 3.5], ["Relu", "Tanh"])
    with pytest.raises(ModelError, match=r"'gelu'.*relu"):
        compile_model(path, calibration=rows, activations={"gelu": Override(4)}, name="m")


@pytest.mark.parametrize(
    "text",
    [
        "relu",
        "relu=",
        "=degree:4",
        "relu=degree:1",
        "relu=degree:99",
        "relu=range:-1",
        "relu=step:3",
        "relu=range:nan",
    ],
)
def test_overrides_that_say_nothing(text: str) -> None:
    with pytest.raises(ModelError, match="degree:D"):
        parse_override(text)


def test_functions_that_no_polynomial_follows_are_refused(tmp_path: Path) -> None:
    b = ModelBuilder((1, 4, 4))
    x = b.node("Sigmoid", b.node("Mul", b.conv("image", 1, 2), b.constant(1e5)))
    path = b.save(
        tmp_path / "m.onnx",
        b.dense(b.node("Flatten", b.node("Exp", b.node("Mul", x, b.constant(900.0)))), 8, 2),
    )
    with pytest.raises(ModelError, match=r"Exp"):
        compile_model(path, calibration=b.rows(40).astype(np.float64), name="m")


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibration rows (training pictures), test rows and labels."""
    pytest.importorskip("sklearn")
    from models import data

    d = data.digits()
    return d.train_images[:256] / 255.0, d.test_images / 255.0, d.test_labels


@pytest.mark.parametrize(("name", "relus"), [("digits_relu", 3), ("digits_residual", 7)])
def test_a_relu_network_from_an_exporter_within_one_point(
    name: str, relus: int, digits: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    calibration, rows, labels = digits
    path = MODELS / f"{name}.onnx"
    graph = build_graph(load_onnx(path))
    found = approximate(graph, calibration.reshape(len(calibration), -1), calibrated=True)
    assert found.error <= found.budget and len(found.fits) == relus
    plain = onnx_outputs(path, rows.astype(np.float32))
    flat = rows.reshape(len(rows), -1)
    assert np.abs(forward(graph, flat) - plain).max() < 1e-4
    outside: list[np.ndarray] = []
    got = classes_of(forward(found.graph, flat, outside))
    assert not np.any(outside)  # no value of an unseen picture leaves an interval
    accuracy, original = (got == labels).mean(), (classes_of(plain) == labels).mean()
    assert original > 0.98 and accuracy >= original - 0.01


@pytest.mark.slow
def test_a_relu_network_really_encrypted(digits: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    from he_serve.trial import try_model

    calibration, rows, _ = digits
    model: CompiledModel = compile_model(
        MODELS / "digits_relu.onnx",
        calibration=calibration,
        activations={"relu": Override(degree=4)},
        precision=1e-2,
        name="digits",
    )
    assert sum(i.op is Op.MULTIPLY for i in model.circuit.instructions) == 9
    path = MODELS / "digits_relu.onnx"
    result = try_model(
        model, rows[:3], lambda x: onnx_outputs(path, x.astype(np.float32)), 2, lambda *_: None
    )
    assert result["agrees"] and result["same_class"]


def test_the_grid_meets_the_middle() -> None:
    assert grid()[POINTS // 2] == 0.0
