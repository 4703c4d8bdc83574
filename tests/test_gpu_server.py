"""A server on pretended GPUs: evaluation processes whose CuPy is the stand-in, from HTTP to HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from samples import small_parameters, tiny_expected
from serving import Keyed, Server, assert_problem, keyed_client, start_server

from ckks.wire import dump_ciphertext, load_ciphertext
from he_serve.packing import pack

_CUPY = """
import sys
from bench._stand_in import StandIn
from cuda_shim import Shim
sys.modules["cupy"] = StandIn(Shim(), devices=2)
"""
TESTS = Path(__file__).resolve().parent
ROWS = np.random.default_rng(5).uniform(-1, 1, (6, 3))


@pytest.fixture(scope="module")
def on_gpus(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cupy")
    (folder / "cupy.py").write_text(_CUPY, encoding="utf-8")
    path = os.pathsep.join([str(folder), str(TESTS), str(TESTS.parent)])
    options = {"backends": ["gpu:0", "gpu:1"], "workers": 2}
    with start_server(
        models_folder, tmp_path_factory.mktemp("state"), {"PYTHONPATH": path}, **options
    ) as running:
        yield running


def body(keyed: Keyed, row: np.ndarray) -> bytes:
    spec = keyed.bundle.input
    return dump_ciphertext(
        small_parameters(), keyed.secret.encrypt(pack(row, spec.packing), spec.level, spec.scale)
    )


def post(server: Server, keyed: Keyed, content: bytes) -> httpx.Response:
    url = f"{server.url}/v2/models/tiny/infer"
    return httpx.post(url, content=content, headers=keyed.headers(), timeout=60, trust_env=False)


def error(keyed: Keyed, answer: httpx.Response, row: np.ndarray) -> float:
    output = keyed.bundle.output
    result = load_ciphertext(answer.content, small_parameters(), output.level, output.scale)
    values = keyed.secret.decrypt(result)[: len(output.packing.slots)]
    return float(np.abs(values - tiny_expected(row)).max())


def test_many_requests_of_two_clients(on_gpus: Server) -> None:
    with keyed_client(on_gpus) as first, keyed_client(on_gpus) as second, ThreadPoolExecutor(16) as pool:
        asked = [(keyed, row, body(keyed, row)) for row in ROWS for keyed in (first, second)]
        answers = list(pool.map(lambda one: post(on_gpus, one[0], one[2]), asked))
        # All that wait at the same time go together; all answers are for those who asked.
        for (keyed, row, _), answer in zip(asked, answers, strict=True):
            assert answer.status_code == 200, answer.text
            assert error(keyed, answer, row) < keyed.bundle.promised_error
        # A bad one among good ones is refused, and the good ones are answered.
        spoiled = bytearray(asked[0][2])
        spoiled[-8:] = b"\xff" * 8
        bodies = [bytes(spoiled) if i == 3 else asked[2 * i][2] for i in range(6)]
        found = list(pool.map(lambda content: post(on_gpus, first, content), bodies))
        assert_problem(found.pop(3), 422, "bad-ciphertext")
        assert [answer.status_code for answer in found] == [200] * 5
