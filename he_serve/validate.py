"""A disposable process that checks one uploaded key file and writes its expanded form, under limits on memory and processor time.

Hostile bytes meet the parsers here and nowhere else: whatever goes wrong, the server lives. It reads one JSON job on standard input and
writes one JSON answer on standard output; an end without an answer is a rejection too.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import resource
import sys
from pathlib import Path

from ckks.backends import make_backend
from ckks.bundle import Bundle
from ckks.encoded import EncodedWeights, encoded_file
from ckks.errors import InputError
from ckks.expanded import expand_keys, expanded_bytes
from ckks.modelfile import load_model
from ckks.rebase import rebase_model
from he_serve.keystore import KeyRecord, KeyStore
from he_serve.registry import Deployed
from he_serve.settings import GIB, Settings

_CHUNK = 1 << 20
_NICE = 10  # encoding gives way to evaluations
_PYTHON_BYTES = 2 * GIB  # address space of an interpreter with NumPy: mostly reserved, never touched


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        bundle = Bundle.from_bytes(job["bundle"].encode())
        _expand(Path(job["source"]), Path(job["target"]), job["sha256"], bundle)
        if job["encoded"]:
            os.nice(_NICE)
            _encode(Path(job["model"]), bundle, Path(job["encoded"]))
        reason = ""
    except InputError as error:
        reason = str(error)
    except MemoryError:
        reason = "the key file needs more memory to check than its size explains"
    sys.stdout.write(json.dumps({"reason": reason}))


def _expand(source: Path, target: Path, sha256: str, bundle: Bundle) -> None:
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    if digest.hexdigest() != sha256:
        raise InputError("the uploaded bytes do not have the announced SHA-256; upload them again")
    expand_keys(source, target, bundle.checked_parameters(), bundle.key_needs())
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _encode(source: Path, bundle: Bundle, path: Path) -> None:
    """Encode the weights of a model on the primes of `bundle`, unless an earlier key's check has. Raises InputError."""
    if path.exists():
        return
    model = rebase_model(load_model(source), bundle.checked_parameters())
    if model.bundle != bundle:
        raise InputError(
            "the model was replaced while the key was checked; fetch its bundle and make new keys"
        )
    weights = EncodedWeights(make_backend(bundle.checked_parameters()), model.weights)
    weights.prepare_shared(model.circuit, path)


async def validate(record: KeyRecord, store: KeyStore, model: Deployed, settings: Settings) -> None:
    """Run the process above on an upload and record the outcome. On primes of the client's it encodes the model's weights, too."""
    target = store.expanded_path(record.id)
    partial = target.with_suffix(".partial")
    # The model file is read and parsed, and its encoding written a few polynomials at a time and then mapped.
    encoding = 4 * model.path.stat().st_size + 2 * model.encoded_bytes + 2 * GIB if model.own_primes else 0
    job = {
        "source": str(store.upload_path(record.id)),
        "target": str(partial),
        "sha256": record.sha256,
        "bundle": model.bundle_bytes.decode(),
        # The upload is mapped and at most one key is held expanded, in twice its packed size or less and then packed; four times the
        # whole is a bound that no conformant file reaches.
        "memory": _PYTHON_BYTES + record.size + 4 * expanded_bytes(model.parameters, model.needs) + encoding,
        "model": str(model.path),
        "encoded": str(encoded_file(settings.encoded, model.bundle)) if model.own_primes else "",
        "seconds": int(settings.validation_timeout),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "he_serve.validate",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = await asyncio.wait_for(
            process.communicate(json.dumps(job).encode()), settings.validation_timeout
        )
        reason = str(json.loads(output)["reason"])
    except (asyncio.TimeoutError, TimeoutError):
        reason = "checking the key file took too long"
    except (ValueError, KeyError, OSError):
        reason = "the key file could not be checked within the memory and time that its size explains"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if not reason:
        os.replace(partial, target)
    partial.unlink(missing_ok=True)
    await asyncio.to_thread(store.finish, record.id, reason)


if __name__ == "__main__":
    main()
