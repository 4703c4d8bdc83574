"""The deployed models: every *.hem file of a folder, checked completely when the server starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckks.bundle import Bundle
from ckks.errors import InputError
from ckks.modelfile import load_model
from ckks.parameters import Parameters
from ckks.types import KeyNeeds


@dataclass(frozen=True)
class Deployed:
    """One deployed model; `bundle_bytes` is what clients fetch, `digest` its SHA-256."""

    path: Path
    bundle: Bundle
    bundle_bytes: bytes
    digest: str
    parameters: Parameters
    needs: KeyNeeds


def load_registry(folder: Path) -> Mapping[str, Deployed]:
    """All models of a folder by name. Raises FormatError for a bad file and InputError for none or for two of one name."""
    models: dict[str, Deployed] = {}
    for path in sorted(folder.glob("*.hem")):
        bundle = load_model(path).bundle
        if bundle.name in models:
            raise InputError(
                f"{path.name} and {models[bundle.name].path.name} are both called {bundle.name!r}; remove one"
            )
        data, parameters = bundle.to_bytes(), bundle.checked_parameters()
        models[bundle.name] = Deployed(path, bundle, data, bundle.digest, parameters, bundle.key_needs())
    if not models:
        raise InputError(
            f"{folder}: no compiled models (*.hem) here; make one with he-serve compile MODEL.onnx -o {folder}/NAME.hem"
        )
    return models
