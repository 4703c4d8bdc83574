"""The circuit format: a straight line of frozen instructions, one operation enum, a readable dump.

Instruction i computes value i; operands are earlier indices. Every instruction states the level and the scale of its result, so that
the verifier (ckks/verify.py) can check a circuit without weights or keys, and a server can refuse a bad one before it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from ckks.errors import CircuitError
from ckks.types import KeyNeeds

Weights = Mapping[str, npt.NDArray[np.float64]]
Hops = tuple[tuple[int, int], ...]


class Op(str, Enum):
    """Operations on ciphertexts; every evaluator implements each."""

    INPUT = "input"  # the ciphertext called `name`
    ADD = "add"  # a + b, same level and scale
    SUBTRACT = "subtract"  # a - b, same level and scale
    ADD_PLAIN = "add_plain"  # a + weight, encoded at a's level and scale
    MULTIPLY_PLAIN = "multiply_plain"  # a * weight, encoded at weight_scale
    MULTIPLY = "multiply"  # a * b: three polynomials
    RELINEARISE = "relinearise"  # three polynomials -> two
    RESCALE = "rescale"  # divide by the last prime: one level down
    DROP_LEVEL = "drop_level"  # the same value at a lower level
    ROTATE = "rotate"  # slots to the left by `steps`
    LINEAR_TRANSFORM = "linear_transform"  # matrix by generalised diagonals, encoded at weight_scale
    MATRIX = "matrix"  # matrix times a stack: each weight rounded at weight_scale
    OUTPUT = "output"  # the result called `name`


# All others take one operand, but for MATRIX: it takes any number of stacks, which stand for one, member after member.
ARITY = {Op.INPUT: 0, Op.ADD: 2, Op.SUBTRACT: 2, Op.MULTIPLY: 2}


@dataclass(frozen=True)
class Instruction:
    """One operation. Fields that an operation does not use keep their defaults.

    level, scale: of the result. layer: the name of the ONNX layer it came from, for reports and progress.
    weight: key of the weights file: float64 [period] for plain operands, [diagonals][period] for linear transforms; period is a power of
    two that divides the slot count, and the vector repeats. For stacks one number per member, the same for all slots, and [outputs][inputs]
    for a matrix.
    members (INPUT, MATRIX): ciphertexts in the stack that results; 0 for a single ciphertext that is none. Other operations on stacks
    work member by member, on stacks of equal size. products (MATRIX): its non-zero weights.
    terms (LINEAR_TRANSFORM): one (giant, baby) pair per diagonal; the matrix maps slot vector x to
    y[t] = sum_k diagonal_k[t] * x[t + giant_k + baby_k], evaluated as sum_giant rot_giant(sum_baby rot_-giant(diagonal) * rot_baby(x))
    (baby steps and giant steps: Halevi and Shoup 2018, section 3). giant and baby are in 0..slots-1.
    baby_hops, giant_hops (LINEAR_TRANSFORM): pairs (step, key) for the rotations that have no key of their own: the rotation by `step` is
    the one by step - key (mod slots), again a hop or one with a key, followed by one by `key`. So few keys make many rotations.
    """

    op: Op
    operands: tuple[int, ...]
    level: int
    scale: float
    layer: str = ""
    name: str = ""
    steps: int = 0
    weight: str = ""
    weight_scale: float = 0.0
    terms: tuple[tuple[int, int], ...] = ()
    baby_hops: Hops = ()
    giant_hops: Hops = ()
    members: int = 0
    products: int = 0


@dataclass(frozen=True)
class Circuit:
    """Instructions over vectors of `slots` slots; inputs and outputs are instructions."""

    slots: int
    instructions: tuple[Instruction, ...]

    def members(self) -> list[int]:
        """Of every value: the size of its stack, 0 for a single ciphertext."""
        found: list[int] = []
        for ins in self.instructions:
            stated = ins.op in (Op.INPUT, Op.MATRIX)
            found.append(ins.members if stated else found[ins.operands[0]])
        return found

    def working_bytes(self) -> int:
        """The most bytes that values alive at one time take while this runs, operands and result of an instruction included."""
        last_use = {o: i for i, ins in enumerate(self.instructions) for o in ins.operands}
        made = {Op.INPUT: 2, Op.MULTIPLY: 3, Op.RELINEARISE: 2}
        polys: list[int] = []
        alive: dict[int, int] = {}
        most = 0
        for i, (ins, members) in enumerate(zip(self.instructions, self.members(), strict=True)):
            polys.append(made[ins.op] if ins.op in made else polys[ins.operands[0]])
            alive[i] = max(members, 1) * polys[i] * (ins.level + 1) * 2 * self.slots * 8
            most = max(most, sum(alive.values()))
            for o in (*ins.operands, i):
                if last_use.get(o, i) == i and ins.op is not Op.INPUT:
                    alive.pop(o, None)
        return most

    def key_needs(self) -> KeyNeeds:
        """Exactly the evaluation keys that running this circuit uses, each at the highest level of use."""
        relinearisation: int | None = None
        rotations: dict[int, int] = {}
        for ins in self.instructions:
            if ins.op is Op.RELINEARISE:
                relinearisation = max(ins.level, relinearisation if relinearisation is not None else 0)
            for steps in rotation_steps(ins, self.slots):
                rotations[steps] = max(ins.level, rotations.get(steps, 0))
        return KeyNeeds(relinearisation, dict(sorted(rotations.items())))

    def to_json(self) -> dict[str, Any]:
        """A JSON form without loss (floats as hexadecimal strings); fields at their defaults are left out."""
        rows = []
        for ins in self.instructions:
            row: dict[str, Any] = {
                "op": ins.op.value,
                "operands": list(ins.operands),
                "level": ins.level,
                "scale": ins.scale.hex(),
            }
            if ins.weight_scale:
                row["weight_scale"] = ins.weight_scale.hex()
            for k in _PAIRS:
                if pairs := getattr(ins, k):
                    row[k] = [list(pair) for pair in pairs]
            row |= {k: v for k in _SIMPLE if (v := getattr(ins, k))}
            rows.append(row)
        return {"slots": self.slots, "instructions": rows}

    @staticmethod
    def from_json(data: object) -> Circuit:
        """The circuit in parsed JSON; types and field names are checked here, meaning in `verify`. Raises CircuitError."""
        try:
            if not isinstance(data, dict) or set(data) != {"slots", "instructions"}:
                raise CircuitError("a circuit must be an object of slots and instructions")
            return Circuit(_integer(data["slots"]), tuple(_instruction(row) for row in data["instructions"]))
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise CircuitError(f"malformed circuit: {error}; compile the model again") from None

    def dump(self) -> str:
        """A readable listing, one instruction a line: %index = op %operands details : level, log2 of the scale."""
        lines = []
        for i, ins in enumerate(self.instructions):
            details = [f"%{o}" for o in ins.operands]
            details += [str(v) for v in (ins.name, ins.weight) if v] + (
                [f"by {ins.steps}"] if ins.steps else []
            )
            if ins.terms:
                babies, giants = len({b for _, b in ins.terms}), len({g for g, _ in ins.terms})
                details.append(f"{len(ins.terms)} diagonals, {babies} babies, {giants} giants")
            if ins.members:
                details.append(f"{ins.members} members")
            if hops := len(ins.baby_hops) + len(ins.giant_hops):
                details.append(f"{hops} hops")
            text = f"%{i} = {ins.op.value} {', '.join(details)}"
            lines.append(
                f"{text:<72} : level {ins.level}, scale 2^{np.log2(ins.scale):.3f}  {ins.layer}".rstrip()
            )
        return "\n".join(lines)


def part_names(name: str, parts: int) -> list[str]:
    """What the ciphertexts of an input or output called `name` are called: as it is, or NAME.0, NAME.1, ... if there are several."""
    return [name] if parts == 1 else [f"{name}.{k}" for k in range(parts)]


def rotation_steps(ins: Instruction, slots: int) -> set[int]:
    """The non-zero left rotations, in 1..slots-1, that an instruction needs keys for."""
    if ins.op is Op.ROTATE:
        return {ins.steps % slots} - {0}
    if ins.op is Op.LINEAR_TRANSFORM:
        babies, giants = {b for _, b in ins.terms}, {g for g, _ in ins.terms}
        used = rotation_path(babies, ins.baby_hops, slots) + rotation_path(giants, ins.giant_hops, slots)
        return {key for _, _, key in used}
    return set()


def rotation_path(steps: Set[int], hops: Hops, slots: int) -> list[tuple[int, int, int]]:
    """How to reach the rotations `steps` from none: (step, parent, key), every parent before its children, nothing twice.

    Steps are taken modulo `slots`; 0 is where all paths begin and is not listed. Raises CircuitError for hops in a circle.
    """
    keys = dict(hops)
    reached = {0}
    found: list[tuple[int, int, int]] = []
    for step in sorted(s % slots for s in steps):
        path: list[tuple[int, int, int]] = []
        while step not in reached:
            key = keys.get(step, step)
            parent = (step - key) % slots
            reached.add(step)
            path.append((step, parent, key))
            step = parent
        if any(step == s for s, _, _ in path):
            raise CircuitError(f"the hops to rotation {step} run in a circle")
        found += reversed(path)
    return found


_SIMPLE = ("layer", "name", "steps", "weight", "members", "products")
_PAIRS = ("terms", "baby_hops", "giant_hops")
_FIELDS = {f.name for f in dataclasses.fields(Instruction)}


def _integer(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"expected an integer, got {type(value).__name__}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise TypeError("names must be strings of at most 200 characters")
    return value


def _instruction(row: dict[str, Any]) -> Instruction:
    if unknown := set(row) - _FIELDS:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    pairs = {k: tuple((_integer(a), _integer(b)) for a, b in row.get(k, ())) for k in _PAIRS}
    return Instruction(
        op=Op(row["op"]),
        operands=tuple(_integer(o) for o in row["operands"]),
        level=_integer(row["level"]),
        scale=float.fromhex(row["scale"]),
        layer=_text(row.get("layer", "")),
        name=_text(row.get("name", "")),
        steps=_integer(row.get("steps", 0)),
        weight=_text(row.get("weight", "")),
        weight_scale=float.fromhex(row.get("weight_scale", "0x0p+0")),
        members=_integer(row.get("members", 0)),
        products=_integer(row.get("products", 0)),
        **pairs,
    )
