"""OpenFHE's side of bench/libraries.py, on Python 3.10: its evaluator on a whole circuit, and a client of ours whose keys it holds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from bench._openfhe_circuit import OpenFheCircuit
from bench._orion import peak_rss
from bench._serve import serve
from ckks.interpreter import run
from ckks.modelfile import load_model
from ckks.parameters import Parameters
from ckks.wire import dump_ciphertext, dump_keys, load_ciphertext
from he_serve.packing import pack, unpack
from keys import secret_key_type


class Side:
    """Every method answers one kind of request; the answer is its JSON object."""

    def load(self, model: str, rows: str) -> dict[str, Any]:
        """Keys of OpenFHE's own for a compiled model, its weights encoded, the rows of an npz file encrypted."""
        self.model = load_model(Path(model))
        bundle, start = self.model.bundle, time.perf_counter()
        parameters = bundle.checked_parameters()
        self.circuit = OpenFheCircuit(parameters, self.model.circuit, self.model.weights)
        prepared = time.perf_counter() - start
        self.slots = [pack(row.astype(np.float64), bundle.input.packing) for row in np.load(rows)["x"]]
        spec = bundle.input
        self.inputs = [self.circuit.encrypt(slots, spec.level, spec.scale) for slots in self.slots]
        self.outputs: dict[int, Any] = {}
        self.run(0)  # encodes what is left: in another ring scales differ a little from the circuit's
        return {
            "prepare_s": prepared,
            "parameters": str(self.circuit.parameters).partition("_logp")[0]
            + f"_logp_{len(self.circuit.special_primes)}x60_dnum_{self.circuit.digits}",
            "data_primes": self.circuit.parameters.data_primes,
            "digits": self.circuit.digits,
            "special_primes": self.circuit.special_primes,
            "rotation_keys": len(self.circuit.steps),
            "key_bytes": self.circuit.key_bytes,
        }

    def run(self, row: int) -> dict[str, Any]:
        """Evaluate the circuit on one row."""
        name, start = self.model.bundle.input.name, time.perf_counter()
        outputs = run(self.model.circuit, {name: self.inputs[row]}, self.circuit.evaluator)
        seconds = time.perf_counter() - start
        self.outputs[row] = outputs[self.model.bundle.output.name]
        return {"seconds": seconds}

    def logits(self, row: int) -> dict[str, Any]:
        """The last result for a row, decrypted."""
        slots = self.circuit.decrypt(self.outputs[row])
        return {"logits": unpack(slots, self.model.bundle.output.packing).ravel().tolist()}

    def peak(self) -> dict[str, Any]:
        """Peak memory of this process."""
        return {"bytes": peak_rss()}

    def client(self, parameters: dict[str, Any], folder: str) -> dict[str, Any]:
        """A client of ours with a key that OpenFHE draws, over other key-switching primes: writes "keys" and "request-ROW"."""
        bundle, p = self.model.bundle, Parameters.from_json(parameters)
        start = time.perf_counter()
        self.secret = secret_key_type("openfhe").generate(p)
        dump_keys(Path(folder, "keys"), self.secret.evaluation_keys(bundle.key_needs()))
        seconds = time.perf_counter() - start
        for i, slots in enumerate(self.slots):
            fresh = self.secret.encrypt(slots, bundle.input.level, bundle.input.scale)
            Path(folder, f"request-{i}").write_bytes(dump_ciphertext(p, fresh))
        return {"keygen_s": seconds}

    def answer(self, file: str) -> dict[str, Any]:
        """A server's answer to that client, decrypted."""
        spec = self.model.bundle.output
        ciphertext = load_ciphertext(Path(file).read_bytes(), self.secret.parameters, spec.level, spec.scale)
        return {"logits": unpack(self.secret.decrypt(ciphertext), spec.packing).ravel().tolist()}


if __name__ == "__main__":
    serve(Side())
