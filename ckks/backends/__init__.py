"""The array-level seam: what a backend computes, exactly. `reference` is the definition; all others agree with it bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ckks.errors import ParameterError
from ckks.packed import Packed
from ckks.parameters import Parameters
from ckks.types import Ciphertext, EvaluationKeys, KeySwitchKey, Residues

if TYPE_CHECKING:
    from ckks.circuit import Circuit

T = TypeVar("T")
Rows = tuple[int, ...]
Values = dict[str, Ciphertext]  # inputs or outputs of a circuit
Run = Callable[[Values], Values]


@dataclass(frozen=True, eq=False)
class Fetched(Generic[T]):
    """Something on its way to the host. wait: waits for it; done: whether it is there."""

    wait: Callable[[], T]
    done: Callable[[], bool] = lambda: True


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

    def fetch(self, x: Residues) -> Fetched[Residues]:
        """Starts a `download`, beside what is computed later."""

    def repeat(self, program: object, keys: EvaluationKeys, inputs: Values, run: Run) -> Values:
        """run(inputs), which does the same with all inputs of these shapes as long as `program` and `keys` are these objects.

        A device may have recorded what was launched for earlier ones, and play it back.
        """

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
        divided: bool = False,
    ) -> Residues:
        """sum_j A(digits[j]) * key.digits[j] over extended_rows(level), A the automorphism `element` -> [2][level+1+K][N].

        The key's rows above `level` are skipped. `moved` [1 or 2][row][N] are polynomials whose automorphism is added to the first and
        second result: over the extended rows as they are, over the data rows of `level` P times.
        divided: then by P, as `mod_down` does -> [2][level+1][N].
        """

    def key_switch(
        self,
        x: Residues,
        key: KeySwitchKey,
        level: int,
        element: int = 1,
        moved: Residues | None = None,
        divided: bool = False,
    ) -> Residues:
        """key_product of the digits of x, for a polynomial whose digits nobody else needs."""

    def multiply_product_sums(
        self,
        digits: Residues,
        keys: Sequence[tuple[KeySwitchKey, int]],
        moved: Residues | None,
        terms: list[Residues],
        plains: Packed,
        sums: Sequence[Sequence[tuple[int, int]]],
        level: int,
    ) -> Residues:
        """multiply_sums over extended_rows(level) whose first terms are the key_product of `digits`, `moved` and each (key, element).

        The products need no memory of their own.
        """

    def mod_down(self, x: Residues, level: int) -> Residues:
        """Divide NTT-domain [...][level+1+K][N] by P and round: (x - [x]_P) / P with [x]_P centred in (-P/2, P/2]. -> [...][level+1][N]."""

    def rescale(self, x: Residues, level: int) -> Residues:
        """Divide NTT-domain [...][level+1][N] by q_level and round, [x]_q centred in (-q/2, q/2]. -> [...][level][N]."""


def make_backend(parameters: Parameters, name: str = "cpu", threads: int = 1) -> Backend:
    """The backend called `name` ("reference", "cpu", "gpu" or "gpu:i" for device i) for `parameters`.

    Raises ParameterError for another name, DeviceError where there is no such GPU.
    """
    # Imported here: these modules take their protocol from this one.
    from ckks.backends.cpu import CpuBackend
    from ckks.backends.reference import ReferenceBackend

    if name == "cpu":
        return CpuBackend(parameters, threads)
    if name.startswith("gpu"):
        from ckks.backends.gpu import GpuBackend, device_index, open_device

        return GpuBackend(parameters, open_device(device_index(name)))
    if name == "reference":
        return ReferenceBackend(parameters)
    raise ParameterError(f"no backend is called {name!r}; use 'cpu', 'gpu' or 'reference'")


def backend_for(name: str, circuit: Circuit) -> str:
    """What a circuit runs on where `name` is asked for: the CPU, if its stacks of ciphertexts do not fit into the GPU's memory.

    Raises DeviceError where a GPU is asked for and there is none.
    """
    if not name.startswith("gpu") or not any(ins.members for ins in circuit.instructions):
        return name
    from ckks.backends.gpu import device_index, open_device

    # Of the memory that was free at the start the cache may take half; what is computed has as much.
    return name if circuit.working_bytes() <= open_device(device_index(name)).cache.budget else "cpu"


def encoding_backend(backend: Backend, threads: int) -> Backend:
    """What to encode weights with: `backend`, or for a GPU the CPU, where encoding is parallel and its arrays go to a file anyway."""
    return make_backend(backend.parameters, "cpu", threads) if backend.name == "gpu" else backend


__all__ = ["Backend", "Fetched", "Rows", "Run", "Values", "backend_for", "encoding_backend", "make_backend"]
