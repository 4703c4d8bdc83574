"""The client bundle: what a client must know of a deployed model. No weights, no code; parsed strictly on both sides.

It is the `manifest.json` of a compiled model, byte for byte, so its SHA-256 names the model version to both sides.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ckks.circuit import part_names
from ckks.errors import FormatError, HeError, InputError
from ckks.parameters import Parameters
from ckks.types import KeyNeeds

SCHEMA_VERSION = 3
MAX_BUNDLE_BYTES = 8 << 20
MAX_ELEMENTS = 1 << 20  # of a tensor, and slots of all its ciphertexts
MAX_PARTS = 32  # ciphertexts of a tensor
MAX_TENSORS = 16  # inputs, and outputs
MAX_MEMBERS = 1 << 15  # ciphertexts in a stack
Name = Annotated[str, Field(min_length=1, max_length=200)]
Post = Literal["softmax", "sigmoid", "none"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Packing(_Strict):
    """Where a tensor lies in the slot vectors of its ciphertexts.

    Element i (C order) is in part slots[i] // period, there at slots[i] % period + k*period for every k; other slots are zero or unused.
    parts: ciphertexts.
    copies, shift: the period of an input of one part may hold several copies, see `copy_places`; an output's does not.
    lanes: images in one ciphertext, interleaved: what has slot s for one image has slot s*lanes + b for image b; period*lanes slots repeat.
    stacked: element i is ciphertext i of a stack, image b at slot b + k*lanes; slots is then [0], period and parts 1.
    """

    shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 20)]], Field(min_length=1, max_length=6)]
    slots: Annotated[
        list[Annotated[int, Field(ge=0, lt=MAX_ELEMENTS)]], Field(min_length=1, max_length=MAX_ELEMENTS)
    ]
    period: Annotated[int, Field(ge=1, le=1 << 15)]
    copies: Annotated[int, Field(ge=1, le=1 << 15)] = 1
    shift: Annotated[int, Field(ge=0, lt=1 << 15)] = 0
    parts: Annotated[int, Field(ge=1, le=MAX_PARTS)] = 1
    lanes: Annotated[int, Field(ge=1, le=1 << 15)] = 1
    stacked: bool = False

    @property
    def members(self) -> int:
        """Ciphertexts in the stack; 0 for a single ciphertext that is no stack."""
        return math.prod(self.shape) if self.stacked else 0

    @model_validator(mode="after")
    def _consistent(self) -> Packing:
        if self.lanes & (self.lanes - 1):
            raise ValueError("the number of lanes must be a power of two")
        if self.stacked:
            if (self.slots, self.period, self.parts) != ([0], 1, 1) or self.members > MAX_MEMBERS:
                raise ValueError(f"a stack has slots [0], period 1 and at most {MAX_MEMBERS} members")
            return self
        if self.period & (self.period - 1) or math.prod(self.shape) != len(self.slots):
            raise ValueError("the period must be a power of two and there must be one slot per element")
        if self.copies & (self.copies - 1) or self.copies > (self.period if self.parts == 1 else 1):
            raise ValueError(
                "the number of copies must be a power of two up to the period, and 1 for several parts"
            )
        if (
            len(set(self.slots)) != len(self.slots)
            or max(self.slots) >= self.period * self.parts // self.copies
        ):
            raise ValueError(
                "slots must be distinct and below the period times the parts, or what a copy takes of it"
            )
        return self

    def places(self) -> list[npt.NDArray[np.int64]]:
        """The slots of the elements in each copy, int64 [elements], below the period times the parts."""
        return copy_places(np.array(self.slots), self.period, self.copies, self.shift)


def copy_places(
    slots: npt.NDArray[np.int64], period: int, copies: int, shift: int
) -> list[npt.NDArray[np.int64]]:
    """Where the elements at `slots` in copy 0 lie in each copy: copy k is a block of period/copies slots, turned left by k*shift."""
    if copies == 1:
        return [slots]
    block = period // copies
    return [k * block + ((slots - k * shift) & (block - 1)) for k in range(copies)]


class _Spec(_Strict):
    """What inputs and outputs have in common; all ciphertexts of one are encrypted (or come back) at `level` and `scale`."""

    name: Name
    packing: Packing
    level: Annotated[int, Field(ge=0, le=63)]
    scale: Annotated[float, Field(gt=1.0, lt=2.0**120)]

    @property
    def ciphertexts(self) -> list[str]:
        """The names of its ciphertexts, part by part."""
        return part_names(self.name, self.packing.parts)


class InputSpec(_Spec):
    """An input of the model: name and shape without the batch axis; values in [low, high] by declaration."""

    low: float
    high: float


class OutputSpec(_Spec):
    """An output of the model: logits, labels name its elements (empty: unnamed).

    promised_error: the largest absolute error of a logit that the compiler promises, worst slot.
    largest: beyond this |value| the input was unlike those that the model was made for, and the answer is wrong.
    post: what the client makes of them: softmax (one class of all), sigmoid (each element for itself; a single one with two labels is
    the second's probability), none (values shown as they are, rounded to the promised error).
    """

    labels: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=MAX_ELEMENTS)]
    post: Post = "softmax"
    promised_error: Annotated[float, Field(gt=0.0)]
    largest: Annotated[float, Field(gt=0.0)]

    @model_validator(mode="after")
    def _labelled(self) -> OutputSpec:
        classes = math.prod(self.packing.shape)
        if (self.post, classes) == ("sigmoid", 1) and len(self.labels) == 2:
            classes = 2
        if self.labels and len(self.labels) != classes:
            raise ValueError("there must be one label per output element")
        return self


class RotationKey(_Strict):
    """A rotation to the left by `steps`, needed up to `level`."""

    steps: Annotated[int, Field(ge=1, lt=1 << 15)]
    level: Annotated[int, Field(ge=0, le=63)]


class Bundle(_Strict):
    """See the module."""

    kind: Literal["he-serve bundle"]
    schema_version: Literal[3]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    description: Annotated[str, Field(max_length=2000)]
    parameters: dict[str, Any]
    inputs: Annotated[list[InputSpec], Field(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[list[OutputSpec], Field(min_length=1, max_length=MAX_TENSORS)]
    relinearisation_level: Annotated[int, Field(ge=0, le=63)] | None
    rotations: Annotated[list[RotationKey], Field(max_length=4096)]
    circuit_digest: Digest
    weights_digest: Digest

    @model_validator(mode="after")
    def _fits_parameters(self) -> Bundle:
        try:
            p = self.checked_parameters()
        except HeError as error:
            raise ValueError(str(error)) from None
        specs = [*self.inputs, *self.outputs]
        levels = [s.level for s in specs] + [self.relinearisation_level or 0]
        levels += [r.level for r in self.rotations]
        if len({(s.packing.lanes, s.packing.stacked) for s in specs}) > 1:
            raise ValueError("inputs and outputs must hold the same images")
        if specs[0].packing.stacked and len(specs) > 2:
            raise ValueError("only a model of one input and one output has stacks")
        if (
            max(levels) > p.max_level
            or max(s.packing.period * s.packing.lanes for s in specs) > p.slots
            or any(r.steps >= p.slots for r in self.rotations)
        ):
            raise ValueError("a level, period or rotation does not exist in these parameters")
        if len({r.steps for r in self.rotations}) != len(self.rotations):
            raise ValueError("a rotation is listed twice")
        if any(spec.packing.copies > 1 for spec in self.outputs):
            raise ValueError("only an input has copies within its period")
        for group, ciphertexts in (
            (self.inputs, self.input_ciphertexts),
            (self.outputs, self.output_ciphertexts),
        ):
            names = {spec.name for spec in group}
            if len(names) != len(group) or len(ciphertexts) != sum(spec.packing.parts for spec in group):
                raise ValueError("two inputs or two outputs have the same name")
        return self

    @property
    def input(self) -> InputSpec:
        """The one input. Raises InputError for a model with several."""
        if len(self.inputs) > 1:
            raise InputError(f"{self.name} has {len(self.inputs)} inputs; give an array for each, by name")
        return self.inputs[0]

    @property
    def output(self) -> OutputSpec:
        """The one output. Raises InputError for a model with several."""
        if len(self.outputs) > 1:
            raise InputError(f"{self.name} has {len(self.outputs)} outputs; name the one that is meant")
        return self.outputs[0]

    @property
    def promised_error(self) -> float:
        """The largest absolute error of a logit of any output that the compiler promises."""
        return max(o.promised_error for o in self.outputs)

    @property
    def lanes(self) -> int:
        """Images that a request may hold."""
        return self.inputs[0].packing.lanes

    @property
    def input_members(self) -> int:
        """The size of the stack that a client sends; 0 where it sends no stack."""
        return self.inputs[0].packing.members

    @property
    def output_members(self) -> int:
        """The size of the stack that comes back; 0 where none does."""
        return self.outputs[0].packing.members

    @property
    def input_ciphertexts(self) -> dict[str, tuple[int, float]]:
        """Name of every ciphertext that a client sends, with its level and scale."""
        return {name: (spec.level, spec.scale) for spec in self.inputs for name in spec.ciphertexts}

    @property
    def output_ciphertexts(self) -> dict[str, tuple[int, float]]:
        """Name of every ciphertext that comes back, with its level and scale."""
        return {name: (spec.level, spec.scale) for spec in self.outputs for name in spec.ciphertexts}

    def checked_parameters(self) -> Parameters:
        """The parameter set, checked against our own security table. Raises ParameterError or SecurityError."""
        return Parameters.from_json(self.parameters)

    def key_needs(self) -> KeyNeeds:
        """The evaluation keys a client of this model must upload."""
        return KeyNeeds(self.relinearisation_level, {r.steps: r.level for r in self.rotations})

    def to_bytes(self) -> bytes:
        """The manifest.json bytes that `digest` names."""
        return self.model_dump_json(indent=1).encode()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of `to_bytes`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @staticmethod
    def from_bytes(data: bytes) -> Bundle:
        """A bundle from untrusted bytes. Raises FormatError (SecurityError's text included where that is the reason)."""
        if len(data) > MAX_BUNDLE_BYTES:
            raise FormatError(f"a bundle is at most {MAX_BUNDLE_BYTES} bytes, got {len(data)}")
        try:
            return Bundle.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(x) for x in first["loc"]) or "bundle"
            raise FormatError(f"not a valid bundle: {where}: {first['msg']}") from None
