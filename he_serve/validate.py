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

from ckks.bundle import Bundle
from ckks.errors import InputError
from ckks.expanded import expand_keys, expanded_bytes
from he_serve.keystore import KeyRecord, KeyStore
from he_serve.registry import Deployed
from he_serve.settings import GIB, Settings

_CHUNK = 1 << 20
_PYTHON_BYTES = 2 * GIB  # address space of an interpreter with NumPy: mostly reserved, never touched


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _expand(
            Path(job["source"]), Path(job["target"]), job["sha256"], Bundle.from_bytes(job["bundle"].encode())
        )
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


async def validate(record: KeyRecord, store: KeyStore, model: Deployed, settings: Settings) -> None:
    """Run the process above on an upload and record the outcome."""
    target = store.expanded_path(record.id)
    partial = target.with_suffix(".partial")
    job = {
        "source": str(store.upload_path(record.id)),
        "target": str(partial),
        "sha256": record.sha256,
        "bundle": model.bundle_bytes.decode(),
        # The upload is mapped and at most one key is held expanded, in twice its packed size or less and then packed; four times the
        # whole is a bound that no conformant file reaches.
        "memory": _PYTHON_BYTES + record.size + 4 * expanded_bytes(model.parameters, model.needs),
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
