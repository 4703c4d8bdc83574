"""The deployed models: every *.hem file of a folder, checked completely when the server starts; and the same on other primes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckks.bundle import Bundle
from ckks.circuit import Circuit
from ckks.encoded import encoded_bytes
from ckks.errors import InputError
from ckks.modelfile import load_model
from ckks.parameters import Parameters
from ckks.rebase import rebase
from ckks.types import KeyNeeds


@dataclass(frozen=True, eq=False)
class Deployed:
    """One deployed model; `bundle_bytes` is what clients fetch, `digest` its SHA-256, `encoded_bytes` the size of its encoded weights.

    shapes: of its weights, by name. own_primes: canonical JSON of the prime set that a client chose; "" for the model's.
    """

    path: Path
    bundle: Bundle
    bundle_bytes: bytes
    digest: str
    parameters: Parameters
    needs: KeyNeeds
    encoded_bytes: int
    circuit: Circuit
    shapes: Mapping[str, tuple[int, ...]]
    own_primes: str = ""

    def on(self, parameters: Parameters) -> Deployed:
        """The same model on a client's primes. Raises ParameterError where they do not suit it."""
        if parameters == self.parameters:
            return self
        bundle, circuit = rebase(self.bundle, self.circuit, parameters)
        return _deployed(self.path, bundle, circuit, self.shapes, json.dumps(parameters.to_json()))


def _deployed(
    path: Path, bundle: Bundle, circuit: Circuit, shapes: Mapping[str, tuple[int, ...]], own_primes: str = ""
) -> Deployed:
    p = bundle.checked_parameters()
    size = encoded_bytes(circuit, shapes, p)
    needs = bundle.key_needs()
    return Deployed(
        path, bundle, bundle.to_bytes(), bundle.digest, p, needs, size, circuit, shapes, own_primes
    )


def load_registry(folder: Path, weights_memory: int | None = None) -> Mapping[str, Deployed]:
    """All models of a folder by name.

    Raises FormatError for a bad file, InputError for none, for two of one name, and if the encoded weights of all take more than
    `weights_memory` bytes.
    """
    models: dict[str, Deployed] = {}
    for path in sorted(folder.glob("*.hem")):
        model = load_model(path)
        bundle = model.bundle
        if bundle.name in models:
            raise InputError(
                f"{path.name} and {models[bundle.name].path.name} are both called {bundle.name!r}; remove one"
            )
        shapes = {name: weight.shape for name, weight in model.weights.items()}
        models[bundle.name] = _deployed(path, bundle, model.circuit, shapes)
    if not models:
        raise InputError(
            f"{folder}: no compiled models (*.hem) here; make one with he-serve compile MODEL.onnx -o {folder}/NAME.hem"
        )
    total = sum(m.encoded_bytes for m in models.values())
    if weights_memory is not None and total > weights_memory:
        sizes = ", ".join(f"{m.bundle.name} {m.encoded_bytes / 1e6:.1f} MB" for m in models.values())
        raise InputError(
            f"the encoded weights take {total / 1e6:.1f} MB ({sizes}), the limit is {weights_memory / 1e6:.1f} MB: allow more "
            "(--weights-memory), or spread the models over several servers"
        )
    return models
