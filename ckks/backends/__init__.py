"""The array-level seam: what a backend computes, exactly. `reference` is the definition; all others agree with it bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ckks.errors import ParameterError
from ckks.packed import Packed
from ckks.parameters import Parameters
from ckks.types import KeySwitchKey, Residues

if TYPE_CHECKING:
    from ckks.circuit import Circuit

Rows = tuple[int, ...]


class Backend(Protocol):
    """Array functions over the moduli of one parameter set.

    Arrays are C-contiguous uint64 [...][row][N]; `rows` names the modulus of each row (index into parameters.moduli). Residues are in
    [0, q) on entry and exit. Unless it says otherwise a function works in either domain and returns a new array.

    Arrays may lie on a device: see `upload`. Those that do can be sliced, copied and assigned to, and go to NumPy by `download` only.
    """

    name: str
    parameters: Parameters

    def upload(self, x: Residues) -> Residues:
        """x where this backend computes: itself, or a copy on a device. What is computed from it stays there."""

    def download(self, x: Residues) -> Residues:
        """x as a NumPy array: itself, or a copy from a device."""

    def empty_like(self, x: Residues, shape: tuple[int, ...]) -> Residues:
        """An array of this shape to be filled, where x lies."""

    def forward(self, x: Residues, rows: Rows) -> Residues:
        """Negacyclic NTT of each row: coefficients -> NTT order."""

    def inverse(self, x: Residues, rows: Rows) -> Residues:
        """Inverse of `forward`."""

    def add(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        """a + b; b may lack leading axes of a."""

    def subtract(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        """a - b; b may lack leading axes of a."""

    def multiply(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        """a * b element by element (NTT domain: the ring product); b may lack leading axes of a."""

    def multiply_scalars(self, a: Residues, scalars: Residues, rows: Rows) -> Residues:
        """a times one residue per row: scalars [row]."""

    def add_scalars(self, a: Residues, scalars: Residues, rows: Rows) -> Residues:
        """a plus one residue per row, scalars [row]: in NTT domain a constant."""

    def times_p(self, x: Residues, level: int) -> Residues:
        """P times [...][level+1][N], over the extended rows of `level`: [...][level+1+K][N], 0 modulo the special primes."""

    def multiply_sums(
        self, terms: list[Residues], plains: Packed, sums: Sequence[Sequence[tuple[int, int]]], rows: Rows
    ) -> Residues:
        """Each sum over its (i, j) of terms[i] * plains[j], terms[i] [2][row][N] -> [sum][2][row][N]: the inner loop of a linear transform.

        plains: packed [plaintext][row][N/s], s a power of two: each value stands for s positions in a row.
        """

    def matrix(
        self, stacks: Sequence[Residues], terms: Residues, factors: Residues, outputs: int, rows: Rows
    ) -> Residues:
        """Stacks [member][poly][row][N], one after the other, times a sparse matrix of scalars -> [output][poly][row][N].

        terms: uint64 [2][term], the output and the input of each term, outputs in ascending order; factors: residues [row][term], which
        nobody writes to any more (a device keeps its copy).
        """

    def tensor(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        """(a0*b0, a0*b1 + a1*b0, a1*b1) of two-polynomial ciphertexts [2][row][N] -> [3][row][N], NTT domain."""

    def automorphism(self, x: Residues, element: int) -> Residues:
        """p(X) -> p(X^element) on NTT-domain rows: the permutation of positions, the same for every modulus."""

    def decompose(self, x: Residues, level: int) -> Residues:
        """One NTT-domain polynomial [level+1][N] -> its digits in NTT domain [digit][level+1+K][N] (mod-up).

        Digit j is the centred representative, in (-D/2, D/2] for the digit's modulus D, of x's residues on its own limbs, taken modulo
        every row of extended_rows(level); on its own limbs it is x itself.
        """

    def key_product(
        self,
        digits: Residues,
        key: KeySwitchKey,
        level: int,
        element: int = 1,
        moved: Residues | None = None,
    ) -> Residues:
        """sum_j A(digits[j]) * key.digits[j] over extended_rows(level), A the automorphism `element` -> [2][level+1+K][N].

        The key's rows above `level` are skipped. `moved` [1 or 2][row][N] are polynomials whose automorphism is added to the first and
        second result: over the extended rows as they are, over the data rows of `level` P times.
        """

    def key_switch(
        self,
        x: Residues,
        key: KeySwitchKey,
        level: int,
        element: int = 1,
        moved: Residues | None = None,
    ) -> Residues:
        """key_product of the digits of x, for a polynomial whose digits nobody else needs."""

    def mod_down(self, x: Residues, level: int) -> Residues:
        """Divide NTT-domain [...][level+1+K][N] by P and round: (x - [x]_P) / P with [x]_P centred in (-P/2, P/2]. -> [...][level+1][N]."""

    def rescale(self, x: Residues, level: int) -> Residues:
        """Divide NTT-domain [...][level+1][N] by q_level and round, [x]_q centred in (-q/2, q/2]. -> [...][level][N]."""


def make_backend(parameters: Parameters, name: str = "cpu", threads: int = 1) -> Backend:
    """The backend called `name` ("reference", "cpu" or "gpu") for `parameters`.

    Raises ParameterError for another name, DeviceError where there is no GPU.
    """
    # Imported here: these modules take their protocol from this one.
    from ckks.backends.cpu import CpuBackend
    from ckks.backends.reference import ReferenceBackend

    if name == "cpu":
        return CpuBackend(parameters, threads)
    if name == "gpu":
        from ckks.backends.gpu import GpuBackend

        return GpuBackend(parameters)
    if name == "reference":
        return ReferenceBackend(parameters)
    raise ParameterError(f"no backend is called {name!r}; use 'cpu', 'gpu' or 'reference'")


def backend_for(name: str, circuit: Circuit) -> str:
    """What a circuit runs on where `name` is asked for: the CPU, if its stacks of ciphertexts do not fit into the GPU's memory.

    Raises DeviceError where a GPU is asked for and there is none.
    """
    from ckks.backends.gpu import open_device

    if name != "gpu" or not any(ins.members for ins in circuit.instructions):
        return name
    # Of the memory that was free at the start the cache may take half; what is computed has as much.
    return name if circuit.working_bytes() <= open_device().cache.budget else "cpu"


def encoding_backend(backend: Backend, threads: int) -> Backend:
    """What to encode weights with: `backend`, or for a GPU the CPU, where encoding is parallel and its arrays go to a file anyway."""
    return make_backend(backend.parameters, "cpu", threads) if backend.name == "gpu" else backend


__all__ = ["Backend", "Rows", "backend_for", "encoding_backend", "make_backend"]
