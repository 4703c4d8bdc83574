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
from ckks.wire import dump_ciphertexts, load_ciphertexts
from ckks.wire_keys import dump_keys
from he_serve.packing import joined, pack_inputs, unpack
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
        name, levels = bundle.input.name, bundle.input_ciphertexts
        self.slots = [pack_inputs({name: row.astype(np.float64)}, bundle) for row in np.load(rows)["x"]]
        self.inputs = [
            {part: self.circuit.encrypt(values, *levels[part]) for part, values in slots.items()}
            for slots in self.slots
        ]
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
        start = time.perf_counter()
        self.outputs[row] = run(self.model.circuit, dict(self.inputs[row]), self.circuit.evaluator)
        return {"seconds": time.perf_counter() - start}

    def logits(self, row: int) -> dict[str, Any]:
        """The last result for a row, decrypted."""
        return self._unpacked({name: self.circuit.decrypt(c) for name, c in self.outputs[row].items()})

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
            levels = bundle.input_ciphertexts
            fresh = {name: self.secret.encrypt(part, *levels[name]) for name, part in slots.items()}
            Path(folder, f"request-{i}").write_bytes(dump_ciphertexts(p, fresh))
        return {"keygen_s": seconds}

    def answer(self, file: str) -> dict[str, Any]:
        """A server's answer to that client, decrypted."""
        p, levels = self.secret.parameters, self.model.bundle.output_ciphertexts
        parts = load_ciphertexts(Path(file).read_bytes(), p, levels)
        return self._unpacked({name: self.secret.decrypt(part) for name, part in parts.items()})

    def _unpacked(self, slots: dict[str, Any]) -> dict[str, Any]:
        output = self.model.bundle.output
        return {"logits": unpack(joined(slots, output), output.packing).ravel().tolist()}


if __name__ == "__main__":
    serve(Side())
