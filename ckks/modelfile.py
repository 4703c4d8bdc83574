"""A compiled model in one file: a stored zip of manifest.json, circuit.json, weights.safetensors and report.json."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ckks.bundle import Bundle
from ckks.circuit import Circuit, Weights
from ckks.errors import FormatError
from ckks.verify import verify

MEMBERS = ("manifest.json", "circuit.json", "weights.safetensors", "report.json")
MAX_MEMBER_BYTES = 2 << 30
_EPOCH = (1980, 1, 1, 0, 0, 0)  # fixed member times: equal models are equal files


@dataclass(frozen=True, eq=False)
class CompiledModel:
    """What the compiler writes and the server loads. weights: float64, see ckks.circuit.Instruction; report: free-form JSON."""

    bundle: Bundle
    circuit: Circuit
    weights: Weights
    report: dict[str, Any]


def circuit_bytes(circuit: Circuit) -> bytes:
    """The circuit.json bytes that the bundle's circuit_digest names."""
    return json.dumps(circuit.to_json(), separators=(",", ":")).encode()


def weight_bytes(weights: Weights) -> bytes:
    """The weights.safetensors bytes that the bundle's weights_digest names."""
    data: bytes = save_tensors(
        {k: np.ascontiguousarray(v, dtype=np.float64) for k, v in sorted(weights.items())}
    )
    return data


def sha256(data: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def save_model(path: Path, model: CompiledModel) -> None:
    """Write a compiled model; replaces an existing file in one step."""
    contents = (
        model.bundle.to_bytes(),
        circuit_bytes(model.circuit),
        weight_bytes(model.weights),
        json.dumps(model.report, indent=1).encode(),
    )
    part = path.with_name(path.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, content in zip(MEMBERS, contents, strict=True):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    part.replace(path)


def load_model(path: Path) -> CompiledModel:
    """Read a compiled model and check all of it: members, digests, parameters, circuit, weights. Raises FormatError or CircuitError."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if tuple(i.filename for i in infos) != MEMBERS:
                raise FormatError(
                    f"{path.name}: expected the members {', '.join(MEMBERS)}; compile the model again"
                )
            if any(i.compress_type != zipfile.ZIP_STORED or i.file_size > MAX_MEMBER_BYTES for i in infos):
                raise FormatError(f"{path.name}: members must be stored without compression and below 2 GiB")
            manifest, circuit_json, tensors, report = (archive.read(i) for i in infos)
        bundle = Bundle.from_bytes(manifest)
        if (
            manifest != bundle.to_bytes()
            or sha256(circuit_json) != bundle.circuit_digest
            or sha256(tensors) != bundle.weights_digest
        ):
            raise FormatError(
                f"{path.name}: contents do not match their digests; the file is damaged, compile the model again"
            )
        model = CompiledModel(
            bundle, Circuit.from_json(json.loads(circuit_json)), load_tensors(tensors), json.loads(report)
        )
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (
        zipfile.BadZipFile,
        OSError,
        RuntimeError,
        EOFError,
        SafetensorError,
        json.JSONDecodeError,
        RecursionError,
    ) as error:
        raise FormatError(
            f"{path.name} is not a compiled model ({type(error).__name__}); make one with he-serve compile"
        ) from None
    verify(model.circuit, bundle, model.weights)
    return model
