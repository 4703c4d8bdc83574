"""The server as a process: restarts, dying and hanging workers, full queues, slow clients, what it loads."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from samples import small_parameters
from serving import Keyed, Server, assert_problem, keyed_client, start_server

from ckks.errors import InputError, RemoteError
from ckks.modelfile import CompiledModel, save_model
from ckks.wire import dump_ciphertext
from he_serve.client import Client
from he_serve.packing import pack
from he_serve.registry import load_registry
from he_serve.settings import Settings

X = np.array([0.1, 0.2, -0.3])
SECRET_SIDE = ("keys", "compiler", "onnx", "onnxruntime", "tenseal", "openfhe", "torch")


@pytest.fixture(scope="module")
def own(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tests may harm, if they leave it working: quick time-outs, one place in the queue."""
    limits = {"evaluate_timeout": 2.0, "cancel_grace": 0.3, "queue": 1, "chunk_timeout": 0.5}
    with start_server(models_folder, tmp_path_factory.mktemp("own"), **limits) as running:
        yield running


@pytest.fixture(scope="module")
def own_keyed(own: Server) -> Iterator[Keyed]:
    with keyed_client(own) as ready:
        yield ready


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def infer(server: Server, keyed: Keyed, timeout: float = 30) -> httpx.Response:
    spec = keyed.bundle.input
    encrypted = keyed.secret.encrypt(pack(X, spec.packing), spec.level, spec.scale)
    body = dump_ciphertext(small_parameters(), encrypted)
    url = f"{server.url}/v2/models/tiny/infer"
    return httpx.post(url, content=body, headers=keyed.headers(), timeout=timeout, trust_env=False)


def in_background(server: Server, keyed: Keyed) -> tuple[threading.Thread, list[httpx.Response]]:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(infer(server, keyed)))
    thread.start()
    return thread, answers


def metric(server: Server, name: str) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(name + " ")))


def test_a_worker_that_dies_idle_costs_no_request(own: Server, own_keyed: Keyed) -> None:
    (worker,) = own.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: own.workers() not in ([], [worker]))
    assert infer(own, own_keyed).status_code == 200


def test_a_worker_that_dies_at_work(own: Server, own_keyed: Keyed) -> None:
    (worker,) = own.workers()
    os.kill(worker, signal.SIGSTOP)
    thread, answers = in_background(own, own_keyed)
    time.sleep(0.5)  # the request is with the stopped worker now
    os.kill(worker, signal.SIGKILL)
    thread.join()
    assert_problem(answers[0], 500, "worker-died")
    assert infer(own, own_keyed).status_code == 200


def test_a_worker_that_hangs(own: Server, own_keyed: Keyed) -> None:
    (worker,) = own.workers()
    os.kill(worker, signal.SIGSTOP)
    assert_problem(infer(own, own_keyed), 504, "evaluation-timeout")
    until(lambda: own.workers() not in ([], [worker]))
    own.wait_ready()
    assert infer(own, own_keyed).status_code == 200


def test_a_full_queue(own: Server, own_keyed: Keyed) -> None:
    (worker,) = own.workers()
    os.kill(worker, signal.SIGSTOP)
    first = in_background(own, own_keyed)
    until(lambda: metric(own, "he_serve_jobs_waiting") == 0)
    time.sleep(0.3)
    second = in_background(own, own_keyed)
    until(lambda: metric(own, "he_serve_jobs_waiting") == 1)
    refused = infer(own, own_keyed)
    assert_problem(refused, 503, "busy")
    assert int(refused.headers["retry-after"]) > 0
    os.kill(worker, signal.SIGCONT)
    for thread, answers in (first, second):
        thread.join()
        assert answers[0].status_code == 200


def test_a_client_that_leaves_frees_the_worker(own: Server, own_keyed: Keyed) -> None:
    (worker,) = own.workers()
    os.kill(worker, signal.SIGSTOP)
    with pytest.raises(httpx.ReadTimeout):
        infer(own, own_keyed, timeout=0.3)
    os.kill(worker, signal.SIGCONT)
    assert infer(own, own_keyed).status_code == 200


def test_slow_bodies_are_cut_off(own: Server, own_keyed: Keyed) -> None:
    url = httpx.URL(own.url)
    head = "".join(f"{k}: {v}\r\n" for k, v in own_keyed.headers(content_length="5000").items())
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        start = time.monotonic()
        connection.sendall(f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n{head}\r\nabc".encode())
        answer = b""
        while part := connection.recv(4096):
            answer += part
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"slow-body" in answer
        assert time.monotonic() - start < 10


def test_keys_survive_a_restart(models_folder: Path, tmp_path: Path, tiny: CompiledModel) -> None:
    store, state = tmp_path / "keys", tmp_path / "state"
    with start_server(models_folder, state) as server, keyed_client(server, key_store=store) as keyed:
        assert infer(server, keyed).status_code == 200
        port = httpx.URL(server.url).port
    with start_server(models_folder, state) as server:
        assert server.http.get(f"/v2/keys/{keyed.key_id}").json()["state"] == "ready"
        assert infer(server, keyed).status_code == 200
    # The same name with another bundle: the old keys are of no use, and the server says why.
    changed = tmp_path / "changed"
    changed.mkdir()
    bundle = tiny.bundle.model_copy(update={"description": "version two"})
    save_model(changed / "tiny.hem", CompiledModel(bundle, tiny.circuit, tiny.weights, {}))
    with start_server(changed, state) as server:
        assert httpx.URL(server.url).port != port
        assert_problem(infer(server, keyed), 410, "bundle-retired")
        answer = server.http.post(
            "/v2/models/tiny/infer", content=b"x", headers=keyed.headers(bundle_digest=bundle.digest)
        )
        assert_problem(answer, 409, "other-bundle")


def test_an_interrupted_upload_goes_on_after_a_restart(models_folder: Path, tmp_path: Path) -> None:
    store, state = tmp_path / "keys", tmp_path / "state"
    with start_server(models_folder, state) as server:
        client = Client(server.url, model="tiny", key_store=store)
        bundle = client.bundle()
        client._keys.new_secret_key(bundle)
        path = client._keys.upload_path(bundle)
        entry = client._announce(bundle, path)
        data = path.read_bytes()
        headers = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
        answer = server.http.patch(f"/v2/keys/{entry.key_id}", content=data[:1000], headers=headers)
        assert answer.status_code == 204
        client.close()
    with start_server(models_folder, state) as server:
        assert server.http.head(f"/v2/keys/{entry.key_id}").headers["upload-offset"] == "1000"
        with Client(server.url, model="tiny", key_store=store) as client:
            client._keys.set_pin(client.url, "tiny", bundle.digest)
            client._keys.add_uploaded(entry.model_copy(update={"url": client.url}))
            assert client.ensure_keys() == entry.key_id
            assert not path.exists()
            assert client.predict(X).label in ("a", "b")


def test_two_servers_cannot_share_a_state_folder(server: Server, models_folder: Path) -> None:
    state = server.log.parent
    # The helper fails with the server's log.
    with (
        pytest.raises(AssertionError, match="another server uses this state folder"),
        start_server(models_folder, state),
    ):
        pass


def test_a_full_key_store(models_folder: Path, tmp_path: Path) -> None:
    with (
        start_server(models_folder, tmp_path / "state", key_store_bytes=1000) as server,
        Client(server.url) as client,
        pytest.raises(RemoteError, match="no space for more keys"),
    ):
        client.ensure_keys()


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Settings(models=tmp_path / "none", state=tmp_path)
    with pytest.raises(InputError, match="port"):
        Settings(models=tmp_path, state=tmp_path, port=70000)
    with pytest.raises(InputError, match="workers"):
        Settings(models=tmp_path, state=tmp_path, workers=0)
    with pytest.raises(InputError, match="weights memory"):
        Settings(models=tmp_path, state=tmp_path, weights_memory=0)


def test_models_beyond_the_memory_for_weights_are_refused(models_folder: Path) -> None:
    needed = load_registry(models_folder)["tiny"].encoded_bytes
    assert load_registry(models_folder, needed)
    with pytest.raises(InputError, match=r"\(tiny .* MB\).*--weights-memory"):
        load_registry(models_folder, needed - 1)


def test_no_process_of_a_server_loads_the_secret_side(models_folder: Path, tmp_path: Path) -> None:
    """Every Python process of a server that checked keys and answered a prediction writes down what it had loaded."""
    site, dump = tmp_path / "site", tmp_path / "dump"
    site.mkdir()
    dump.mkdir()
    (site / "sitecustomize.py").write_text(
        "import atexit, json, os, sys\n"
        f"write = lambda: open(os.path.join({str(dump)!r}, str(os.getpid())), 'w')"
        ".write(json.dumps([sys.orig_argv, sorted(sys.modules)]))\n"
        "atexit.register(write)\n"
    )
    env = {"PYTHONPATH": str(site)}
    with start_server(models_folder, tmp_path / "state", env) as server, Client(server.url) as client:
        client.predict(X)
    seen = [json.loads(path.read_text()) for path in dump.iterdir()]
    commands = [" ".join(argv) for argv, _ in seen]
    assert len(seen) == 3
    for part in ("he_serve.serve", "he_serve.worker", "he_serve.validate"):
        assert any(part in command for command in commands), commands
    for command, modules in zip(commands, (m for _, m in seen), strict=True):
        roots = {name.split(".")[0] for name in modules}
        assert "numpy" in roots
        assert not roots & set(SECRET_SIDE), command
