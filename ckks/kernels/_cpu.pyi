from collections.abc import Sequence

from ckks.packed import Bytes
from ckks.types import Residues

def instruction_sets() -> list[str]:
    """What this machine can run, best first: of "avx512", "avx2" and "portable"."""

def empty(shape: Sequence[int]) -> Residues:
    """An uninitialised array that starts on a cache line; its memory is kept for the next one."""

class Engine:
    """The compiled functions of ckks.backends.cpu; results of all but the transforms are written to `out`."""

    def __init__(
        self,
        degree: int,
        moduli: Sequence[int],
        roots: Sequence[int],
        data_count: int,
        digit_limbs: int,
        threads: int,
        instructions: str,
    ) -> None: ...
    def forward(self, x: Residues, rows: Sequence[int]) -> Residues: ...
    def inverse(self, x: Residues, rows: Sequence[int]) -> Residues: ...
    def add(self, a: Residues, b: Residues, out: Residues, rows: Sequence[int]) -> None: ...
    def subtract(self, a: Residues, b: Residues, out: Residues, rows: Sequence[int]) -> None: ...
    def multiply(self, a: Residues, b: Residues, out: Residues, rows: Sequence[int]) -> None: ...
    def multiply_scalars(
        self, a: Residues, scalars: Residues, out: Residues, rows: Sequence[int]
    ) -> None: ...
    def multiply_sums(
        self,
        terms: list[Residues],
        plains: Bytes,
        sums: Sequence[Sequence[tuple[int, int]]],
        length: int,
        out: Residues,
        rows: Sequence[int],
    ) -> None: ...
    def matrix(
        self,
        stacks: Sequence[Residues],
        terms: Residues,
        factors: Residues,
        out: Residues,
        polys: int,
        rows: Sequence[int],
    ) -> None: ...
    def tensor(self, a: Residues, b: Residues, out: Residues, rows: Sequence[int]) -> None: ...
    def automorphism(self, x: Residues, out: Residues, element: int) -> None: ...
    def decompose(self, x: Residues, out: Residues, level: int) -> None: ...
    def key_product(
        self,
        digits: Residues,
        key: Bytes,
        moved: Residues | None,
        out: Residues,
        level: int,
        key_level: int,
        element: int,
        divided: bool,
    ) -> None: ...
    def key_switch(
        self,
        x: Residues,
        key: Bytes,
        moved: Residues | None,
        out: Residues,
        level: int,
        key_level: int,
        element: int,
        divided: bool,
    ) -> None: ...
    def multiply_product_sums(
        self,
        digits: Residues,
        keys: Sequence[tuple[Bytes, int, int]],
        moved: Residues | None,
        terms: Sequence[Residues],
        plains: Bytes,
        sums: Sequence[Sequence[tuple[int, int]]],
        length: int,
        out: Residues,
        level: int,
    ) -> None: ...
    def mod_down(self, x: Residues, out: Residues, level: int) -> None: ...
    def rescale(self, x: Residues, out: Residues, level: int) -> None: ...
