"""TenSEAL's side of bench/libraries.py: its CKKSVector on a network in the form of its tutorial (conv2d_im2col, square_, mm).

The tutorial's pack_vectors is left out: a product `mm` for each channel and their sum give the same, take one level less, and rotate by
less, which TenSEAL composes from powers of two.
"""

from __future__ import annotations

import math
import time
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tenseal

from bench._orion import peak_rss
from bench._serve import serve
from bench._vectors import VectorNetwork, read
from ckks.security import max_log_qp

LEAST_SCALE_BITS, MOST_SCALE_BITS = 25, 50
HEADROOM_BITS = 8  # of the first prime over the scale (logits below 2^7), and of the special prime, for less noise of rotations


def plan(network: VectorNetwork) -> tuple[int, list[int], VectorNetwork]:
    """The smallest ring that holds the network at 128 bits of security, its primes' sizes, and the network with windows that suit it.

    Raises ValueError if there is none.
    """
    levels = 1 + 2 * len(network.dense)
    for degree in (1 << 13, 1 << 14, 1 << 15):
        bits = min(MOST_SCALE_BITS, (max_log_qp(degree) - 2 * HEADROOM_BITS) // (levels + 2))
        ends = bits + HEADROOM_BITS
        for grid in (network.grid, 1 << (network.grid - 1).bit_length()):
            wide = network.widened(grid)
            if bits >= LEAST_SCALE_BITS and holds(wide, degree // 2):
                return degree, [ends, *[bits] * levels, ends], wide
    raise ValueError(f"no ring up to 2^15 holds {network.grid}^2 windows and their matrices")


def holds(network: VectorNetwork, slots: int) -> bool:
    """Whether every value that mm reads, and every output, comes out right.

    TenSEAL's sums over windows and over a matrix's rows rotate cyclically: where the vector does not fill the slots a whole number of
    times, each sum spoils as many slots at the end as it reaches over.
    """
    rows, taps = network.grid**2, 1 << (math.prod(network.kernels.shape[2:]) - 1).bit_length()
    if rows * taps > slots:
        return False
    right = slots if slots % (rows * taps) == 0 else slots - rows * (taps - 1)
    for matrix, _ in network.dense:
        columns = matrix.shape[1]
        if right < slots or slots % rows:
            right -= rows - 1
        if right < columns:
            return False
        rows = columns
    return True


class Side:
    """Every method answers one kind of request; the answer is its JSON object."""

    def load(self, onnx: str, rows: str, threads: int) -> dict[str, Any]:
        """A context at 128 bits with all keys that TenSEAL makes, and the rows of an npz file encrypted: a ciphertext an input channel."""
        degree, bits, network = plan(read(Path(onnx)))
        start = time.perf_counter()
        self.context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=bits, n_threads=threads
        )
        self.context.global_scale = 2 ** bits[1]
        self.context.generate_galois_keys()
        seconds = time.perf_counter() - start
        size = network.kernels.shape[-1]
        self.inputs = []
        for picture in np.load(rows)["x"].astype(np.float64):
            channels = network.prepare(picture).tolist()
            self.inputs.append(
                [tenseal.im2col_encoding(self.context, c, size, size, network.stride)[0] for c in channels]
            )
        keys = self.context.serialize(save_public_key=False, save_secret_key=False)
        self.windows = network.grid**2
        self.kernels = network.kernels.tolist()
        self.bias = network.bias.tolist()
        (first, bias), *others = network.dense
        blocks = [block.tolist() for block in np.split(first, len(self.kernels))]
        # Conversions of the weights are not timed. Biases are encrypted: plain vectors are added to the first slots only, and the next
        # mm reads others.
        self.first = [tenseal.plain_tensor(block) for block in blocks], self._encrypted(bias)
        self.dense = [(tenseal.plain_tensor(m.tolist()), self._encrypted(bias)) for m, bias in others]
        self.outputs: dict[int, Any] = {}
        return {
            "prepare_s": seconds,
            "key_bytes": len(keys),
            "request_bytes": sum(len(encrypted.serialize()) for encrypted in self.inputs[0]),
            "parameters": f"n_{degree}, primes of {bits} bits",
        }

    def _encrypted(self, values: npt.NDArray[np.float64]) -> Any:
        return tenseal.ckks_vector(self.context, values.tolist())

    def run(self, row: int) -> dict[str, Any]:
        """Evaluate the network on one row."""
        start = time.perf_counter()
        products = []
        for kernels, shift, block in zip(self.kernels, self.bias, self.first[0], strict=True):
            parts = [
                encrypted.conv2d_im2col(kernel, self.windows)
                for encrypted, kernel in zip(self.inputs[row], kernels, strict=True)
            ]
            channel = reduce(add, parts) + shift
            products.append(channel.square_().mm(block))
        x = reduce(add, products) + self.first[1]
        for matrix, bias in self.dense:
            x = x.square_().mm(matrix) + bias
        self.outputs[row] = x
        return {"seconds": time.perf_counter() - start}

    def logits(self, row: int) -> dict[str, Any]:
        """The last result for a row, decrypted."""
        return {"logits": self.outputs[row].decrypt()}

    def peak(self) -> dict[str, Any]:
        """Peak memory of this process."""
        return {"bytes": peak_rss()}


if __name__ == "__main__":
    serve(Side())
