"""Small real objects that several tests start from: parameters, a hand-made model, random keys in wire form."""

from __future__ import annotations

import numpy as np

from ckks.bundle import Bundle, InputSpec, OutputSpec, Packing, RotationKey
from ckks.circuit import Circuit, Instruction, Op
from ckks.modelfile import CompiledModel, circuit_bytes, sha256, weight_bytes
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.types import KeyNeeds, SeededCiphertext, SeededKey, SeededKeys
from compiler.layouts import Layout
from compiler.precision import Ends

SCALE = 2.0**25


def small_parameters() -> Parameters:
    """N=4096, three data primes and one special one: 106 bits, the most that N allows."""
    q0 = ntt_primes(4096, 28, 1)
    data = ntt_primes(4096, 25, 2)
    special = ntt_primes(4096, 27, 1, q0 + data)
    return Parameters(4096, q0 + data, special, 1)


def wide_parameters() -> Parameters:
    """N=8192 with primes on both sides of 2^32, two limbs a digit."""
    data = ntt_primes(8192, 40, 1) + ntt_primes(8192, 30, 2)
    return Parameters(8192, data, ntt_primes(8192, 37, 2), 2)


def tiny_model() -> CompiledModel:
    """(2x3 matrix times x, plus bias) squared, on SCALE and small_parameters: one linear transform, one square."""
    p = small_parameters()
    q = p.data_primes
    first = Instruction(Op.INPUT, (), 2, SCALE, name="x")
    wanted = SCALE  # after the first rescale
    weight_scale = wanted * q[2] / SCALE
    product = SCALE * weight_scale
    matrix = np.array([[0.5, -0.25, 1.0], [0.125, 0.75, -0.5]])
    # Output i at slot i, input j at slot j, period 4: diagonal d holds matrix[i, (i + d) % 4].
    diagonals = np.zeros((4, 4))
    for i in range(2):
        for j in range(3):
            diagonals[(j - i) % 4, i] = matrix[i, j]
    weights = {"w": diagonals, "b": np.array([0.25, -0.5, 0.0, 0.0])}
    square = product / q[2] * (product / q[2])
    instructions = (
        first,
        Instruction(
            Op.LINEAR_TRANSFORM,
            (0,),
            2,
            product,
            weight="w",
            weight_scale=weight_scale,
            terms=((0, 0), (0, 1), (2, 0), (2, 1)),
        ),
        Instruction(Op.RESCALE, (1,), 1, product / q[2]),
        Instruction(Op.ADD_PLAIN, (2,), 1, product / q[2], weight="b"),
        Instruction(Op.MULTIPLY, (3, 3), 1, square),
        Instruction(Op.RELINEARISE, (4,), 1, square),
        Instruction(Op.RESCALE, (5,), 0, square / q[1]),
        Instruction(Op.OUTPUT, (6,), 0, square / q[1], name="y"),
    )
    circuit = Circuit(p.slots, instructions)
    needs = circuit.key_needs()
    bundle = Bundle(
        kind="he-serve bundle",
        schema_version=3,
        name="tiny",
        description="a test model",
        parameters=p.to_json(),
        inputs=[
            InputSpec(
                name="x",
                packing=Packing(shape=[3], slots=[0, 1, 2], period=4),
                low=-1.0,
                high=1.0,
                level=2,
                scale=SCALE,
            )
        ],
        outputs=[
            OutputSpec(
                name="y",
                packing=Packing(shape=[2], slots=[0, 1], period=4),
                labels=["a", "b"],
                level=0,
                scale=square / q[1],
                promised_error=0.01,
                largest=3.0,
            )
        ],
        relinearisation_level=needs.relinearisation,
        rotations=[RotationKey(steps=s, level=level) for s, level in needs.rotations.items()],
        circuit_digest=sha256(circuit_bytes(circuit)),
        weights_digest=sha256(weight_bytes(weights)),
    )
    return CompiledModel(bundle, circuit, weights, {"made": "by hand"})


def bundle_ends(bundle: Bundle) -> Ends:
    """Where a compiled model's inputs and outputs lie, from what its clients are told."""
    inputs, outputs = (
        tuple(
            (
                s.name,
                Layout(
                    "",
                    np.array(s.packing.slots),
                    s.packing.period,
                    None,
                    s.packing.copies,
                    s.packing.shift,
                    s.packing.parts,
                    s.packing.lanes,
                ),
            )
            for s in specs
        )
        for specs in (bundle.inputs, bundle.outputs)
    )
    return Ends(inputs, outputs)


def tiny_expected(x: np.ndarray) -> np.ndarray:
    """What tiny_model computes, from its definition."""
    return (np.array([[0.5, -0.25, 1.0], [0.125, 0.75, -0.5]]) @ x + np.array([0.25, -0.5])) ** 2


def random_residues(
    p: Parameters, shape: tuple[int, ...], rows: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Uniform residues [*shape][row][N]: the form of a ciphertext, with no message in it."""
    q = np.array([p.moduli[r] for r in rows], np.uint64)[:, None]
    return rng.integers(0, q, (*shape, len(rows), p.degree), np.uint64)


def random_ciphertext(p: Parameters, level: int, rng: np.random.Generator) -> SeededCiphertext:
    """A conformant seeded ciphertext of noise."""
    return SeededCiphertext(random_residues(p, (), p.data_rows(level), rng), rng.bytes(32), level, SCALE)


def random_keys(p: Parameters, needs: KeyNeeds, rng: np.random.Generator) -> SeededKeys:
    """A conformant key set of noise."""

    def key(level: int) -> SeededKey:
        rows = p.extended_rows(level)
        return SeededKey(random_residues(p, (len(p.digits(level)),), rows, rng), rng.bytes(32), level)

    relinearisation = None if needs.relinearisation is None else key(needs.relinearisation)
    return SeededKeys(
        p, relinearisation, {p.galois_element(s): key(level) for s, level in needs.rotations.items()}
    )
