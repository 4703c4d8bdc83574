"""Real server processes for tests, and the fixtures that start them once per session."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from samples import tiny_model

from ckks.bundle import Bundle
from ckks.modelfile import CompiledModel, save_model
from he_serve.client import Client
from keys.seal import SecretKey

ROOT = Path(__file__).resolve().parent.parent
PROBLEM = "application/problem+json"

_SERVE = """
import json, sys
from pathlib import Path
from he_serve.serve import serve
from he_serve.settings import Settings
options = json.loads(sys.argv[1])
settings = Settings(models=Path(options.pop("models")), state=Path(options.pop("state")), port=0, **options)
serve(settings, lambda url: print(url, flush=True))
"""


@dataclass
class Server:
    """A server process under test."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    http: httpx.Client

    def workers(self) -> list[int]:
        """Process ids of the evaluation workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = []
        for pid in children:
            with contextlib.suppress(FileNotFoundError):
                if b"he_serve.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
        return found

    def wait_ready(self) -> None:
        end = time.monotonic() + 60
        while self.http.get("/v2/health/ready").status_code != 200:
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)


@contextlib.contextmanager
def start_server(
    models: Path, state: Path, env: dict[str, str] | None = None, **settings: Any
) -> Iterator[Server]:
    """A ready server on a free port, with these settings; stopped by SIGTERM at the end."""
    state.mkdir(parents=True, exist_ok=True)
    log = state / "server.log"
    options = json.dumps({"models": str(models), "state": str(state), "drain": 0.0, **settings})
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | (env or {}),
        )
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 60)[0], log.read_text()
        url = process.stdout.readline().decode().strip()
        assert url, log.read_text()
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            server = Server(url, process, log, http)
            server.wait_ready()
            yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@dataclass
class Keyed:
    """A client whose keys are ready on the server, with the pieces that raw requests need."""

    client: Client
    bundle: Bundle
    secret: SecretKey
    key_id: str

    def headers(self, **changes: str | None) -> dict[str, str]:
        """Headers of an inference; None leaves one out."""
        all_headers = {
            "Content-Type": "application/octet-stream",
            "Key-Id": self.key_id,
            "Bundle-Digest": self.bundle.digest,
        } | {name.replace("_", "-").title(): value for name, value in changes.items()}
        return {name: value for name, value in all_headers.items() if value is not None}


@pytest.fixture(scope="session")
def tiny() -> CompiledModel:
    return tiny_model()


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory, tiny: CompiledModel) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "tiny.hem", tiny)
    return folder


@pytest.fixture(scope="session")
def server(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that all tests share; tests that break or restart a server start their own."""
    with start_server(models_folder, tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture(scope="session")
def keyed(server: Server) -> Iterator[Keyed]:
    """Keys for the model tiny on the shared server."""
    with keyed_client(server) as ready:
        yield ready


@contextlib.contextmanager
def keyed_client(server: Server, **options: Any) -> Iterator[Keyed]:
    with Client(server.url, model="tiny", **options) as client:
        key_id = client.ensure_keys()
        bundle = client.bundle()
        secret = client._keys.secret_key(bundle)
        assert secret is not None
        yield Keyed(client, bundle, secret, key_id)


def assert_problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """A response is this problem, in the form that every problem has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    body = response.json()
    assert body["type"] == f"urn:he-serve:problem:{kind}"
    assert body["status"] == status
    assert body["title"] and body["detail"] and body["error"] == body["detail"]
    assert "Traceback" not in response.text and ".py" not in response.text
    return dict(body)


def copy_models(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
