"""TenSEAL's side of bench/libraries.py: its CKKSVector on a network in the form of its tutorial (conv2d_im2col, square_, mm)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import tenseal

from bench._orion import peak_rss
from bench._serve import serve
from bench._vectors import read
from ckks.security import REQUIRED_BITS, max_log_qp

DEGREE, SCALE_BITS, FIRST_BITS = (
    8192,
    25,
    31,
)  # the tutorial's, but for one bit of scale: with 26, our table says less than 128 bits


class Side:
    """Every method answers one kind of request; the answer is its JSON object."""

    def load(self, onnx: str, rows: str, threads: int) -> dict[str, Any]:
        """A context at 128 bits with all keys that TenSEAL makes, and the rows of an npz file encrypted."""
        self.network = network = read(Path(onnx))
        levels = 2 + 2 * len(network.dense)  # pack_vectors takes one too
        bits = [FIRST_BITS, *[SCALE_BITS] * levels, FIRST_BITS]
        if sum(bits) > max_log_qp(DEGREE):
            raise ValueError(f"{sum(bits)} bits are below {REQUIRED_BITS} bits of security")
        start = time.perf_counter()
        self.context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=bits, n_threads=threads
        )
        self.context.global_scale = 2**SCALE_BITS
        self.context.generate_galois_keys()
        seconds = time.perf_counter() - start
        size = self.network.kernels.shape[1]
        self.inputs = []
        for row in np.load(rows)["x"].astype(np.float64):
            picture = network.prepare(row[0]).tolist()
            self.inputs.append(tenseal.im2col_encoding(self.context, picture, size, size, network.stride))
        keys = self.context.serialize(save_public_key=False, save_secret_key=False)
        self.kernels = [kernel.tolist() for kernel in network.kernels]
        self.bias = network.bias.tolist()  # added to packed vectors later on, only scalars come out right
        self.dense = [(matrix.tolist(), bias.tolist()) for matrix, bias in network.dense]
        self.outputs: dict[int, Any] = {}
        return {
            "prepare_s": seconds,
            "key_bytes": len(keys),
            "request_bytes": len(self.inputs[0][0].serialize()),
            "parameters": f"n_{DEGREE}, primes of {bits} bits",
        }

    def run(self, row: int) -> dict[str, Any]:
        """Evaluate the network on one row."""
        encrypted, windows = self.inputs[row]
        start = time.perf_counter()
        channels = [
            encrypted.conv2d_im2col(kernel, windows) + bias
            for kernel, bias in zip(self.kernels, self.bias, strict=True)
        ]
        x = tenseal.CKKSVector.pack_vectors(channels)
        for matrix, bias in self.dense:
            x.square_()
            x = x.mm(matrix) + bias
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
