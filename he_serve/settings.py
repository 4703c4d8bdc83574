"""Settings of one server, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckks.errors import InputError

GIB = 1 << 30


@dataclass(frozen=True)
class Settings:
    """models: folder of *.hem files. state: folder for uploaded keys, kept over restarts, used by one server at a time.

    workers: evaluation processes, each with `threads` threads. queue: requests that may wait for a worker. All times are in seconds, all
    sizes in bytes. chunk_timeout: longest silence within a request body. minimum_rate: bytes per second that a body must reach on average
    after chunk_timeout. key_store_bytes: disk space for uploaded and expanded keys together; a new upload that does not fit is refused.
    backends: what the workers run on (ckks.backends.make_backend), in turn.
    weights_memory: most bytes that the encoded weights of all models may take together, once for all workers; None for no bound.
    prime_sets: prime sets chosen by clients that may be in use at a time, beside the models' own; each has encoded weights of its own.
    """

    models: Path
    state: Path
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    threads: int = 1
    backends: tuple[str, ...] = ("cpu",)
    queue: int = 16
    evaluate_timeout: float = 300.0
    worker_start_timeout: float = 300.0
    cancel_grace: float = 10.0
    chunk_timeout: float = 20.0
    minimum_rate: float = 16384.0
    validation_timeout: float = 600.0
    upload_lifetime: float = 86400.0
    mapped_keys: int = 64
    key_store_bytes: int = 64 * GIB
    weights_memory: int | None = None
    prime_sets: int = 4
    drain: float = 0.5

    @property
    def encoded(self) -> Path:
        """Folder of encoded weights, made from the models and shared by the workers."""
        return self.state / "encoded"

    @property
    def spool(self) -> Path:
        """Folder of request bodies too large to hold in memory twice; each is there as long as its request."""
        return self.state / "spool"

    def __post_init__(self) -> None:
        if not self.models.is_dir():
            raise InputError(
                f"{self.models}: no such folder; give the folder that holds the compiled models (*.hem)"
            )
        if not 0 <= self.port <= 65535:
            raise InputError(f"port must be 0..65535 (0: any free port), got {self.port}")
        for name, value, least in (
            ("workers", self.workers, 1),
            ("threads", self.threads, 1),
            ("queue", self.queue, 1),
            ("weights memory", self.weights_memory, 1),
            ("prime sets", self.prime_sets, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if self.workers < len(self.backends):
            raise InputError(
                f"{len(self.backends)} devices need as many workers at least, got --workers {self.workers}"
            )
