"""The compiler's own graph: seven node types over flat tensors. Elements are in C order; shapes keep the batch axis of 1."""

from __future__ import annotations

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
    """The model's input."""

    name: str
    shape: Shape


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
class Graph:
    """Nodes in topological order; operands are indices; node 0 is the one Source. low, high: the declared range of the input.

    post: what the client makes of the output, "softmax", "sigmoid" or "none".
    """

    nodes: tuple[Node, ...]
    output: int
    output_name: str
    labels: tuple[str, ...]
    post: Post
    low: float
    high: float
    description: str
