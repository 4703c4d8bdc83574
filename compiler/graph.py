"""The compiler's own graph: seven node types over flat tensors. Elements are in C order; shapes keep the batch axis of 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from ckks.bundle import Post

Array = npt.NDArray[np.float64]
Shape = tuple[int, ...]

MAX_ELEMENTS = 1 << 20  # of any tensor, fused away or not
MAX_NONZEROS = 1 << 24  # of any one matrix: 200 MB


@dataclass(frozen=True, eq=False)
class Source:
    """An input. start: where it begins in a flat row of all inputs. low, high: its range; declared: by the file."""

    name: str
    shape: Shape
    start: int
    low: float
    high: float
    declared: bool


@dataclass(frozen=True, eq=False)
class Linear:
    """matrix @ x + bias. matrix: [elements of the result][elements of x]."""

    layer: str
    x: int
    matrix: csr_array
    bias: Array
    shape: Shape


@dataclass(frozen=True, eq=False)
class Elementwise:
    """gain * x + offset, element by element: float64 [elements]. A change of shape alone has gain 1 and offset 0."""

    layer: str
    x: int
    gain: Array
    offset: Array
    shape: Shape


@dataclass(frozen=True, eq=False)
class Sum:
    """x + y, equal shapes."""

    layer: str
    x: int
    y: int
    shape: Shape


@dataclass(frozen=True, eq=False)
class Product:
    """x * y element by element, equal shapes."""

    layer: str
    x: int
    y: int
    shape: Shape


@dataclass(frozen=True, eq=False)
class Nonlinear:
    """function(x) element by element, as imported; compiler/approximate.py replaces it before folding. operator: ONNX's name."""

    layer: str
    x: int
    operator: str
    function: Callable[[Array], Array]
    shape: Shape


@dataclass(frozen=True, eq=False)
class Fitted:
    """sum_k coefficients[k] * T_k((x - center) / half), T_k Chebyshev's polynomials. coefficients: [degree+1][elements, or 1 for all]."""

    layer: str
    x: int
    coefficients: Array
    center: float
    half: float
    shape: Shape


Node = Source | Linear | Elementwise | Sum | Product | Nonlinear | Fitted


def operands(node: Node) -> tuple[int, ...]:
    """The nodes it reads."""
    if isinstance(node, Source):
        return ()
    return (node.x, node.y) if isinstance(node, Sum | Product) else (node.x,)


@dataclass(frozen=True, eq=False)
class Output:
    """A node that the client decrypts. post: what it makes of it, "softmax", "sigmoid" or "none"; labels: of its elements, may be empty."""

    node: int
    name: str
    labels: tuple[str, ...]
    post: Post


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order, all Sources first; operands are indices. A row of data holds all inputs (or outputs), in order."""

    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    description: str

    @property
    def sources(self) -> list[Source]:
        return [node for node in self.nodes if isinstance(node, Source)]

    @property
    def input_size(self) -> int:
        """Elements of a flat row."""
        return sum(math.prod(s.shape) for s in self.sources)

    @property
    def ends(self) -> list[int]:
        return [o.node for o in self.outputs]
