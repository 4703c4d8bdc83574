"""Encrypted inference over HTTP: the whole path, and every way to ask wrongly."""

from __future__ import annotations

import secrets
import socket

import httpx
import numpy as np
import pytest
from samples import random_ciphertext, small_parameters, tiny_expected, wide_parameters
from serving import Keyed, Server, assert_problem

from ckks.modelfile import CompiledModel
from ckks.types import SeededCiphertext
from ckks.wire import ciphertext_limit, dump_ciphertext, load_ciphertext
from he_serve.packing import pack

X = np.array([0.3, -0.7, 0.9])


@pytest.fixture(scope="module")
def body(keyed: Keyed) -> bytes:
    """The wire bytes of an encrypted X."""
    spec = keyed.bundle.input
    encrypted = keyed.secret.encrypt(pack(X, spec.packing), spec.level, spec.scale)
    return dump_ciphertext(small_parameters(), encrypted)


def post(server: Server, body: bytes, headers: dict[str, str]) -> httpx.Response:
    return server.http.post("/v2/models/tiny/infer", content=body, headers=headers)


def still_works(server: Server, keyed: Keyed, body: bytes) -> None:
    answer = post(server, body, keyed.headers())
    assert answer.status_code == 200
    output = keyed.bundle.output
    result = load_ciphertext(answer.content, small_parameters(), output.level, output.scale)
    values = keyed.secret.decrypt(result)[: len(output.packing.slots)]
    assert np.abs(values - tiny_expected(X)).max() < keyed.bundle.promised_error


def test_encrypted_prediction(server: Server, keyed: Keyed, body: bytes) -> None:
    answer = post(server, body, keyed.headers(request_id="abc-123"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["request-id"] == "abc-123"
    assert answer.headers["bundle-digest"] == keyed.bundle.digest
    assert "evaluate;dur=" in answer.headers["server-timing"]
    still_works(server, keyed, body)


@pytest.mark.parametrize(
    ("changes", "status", "kind"),
    [
        ({"key_id": None}, 400, "missing-header"),
        ({"bundle_digest": None}, 400, "missing-header"),
        ({"key_id": "A" * 43}, 404, "unknown-key"),
        ({"key_id": "../../etc/passwd"}, 404, "unknown-key"),
        ({"bundle_digest": "0" * 64}, 409, "bundle-changed"),
        ({"content_type": "application/json"}, 415, "content-type"),
        ({"content_type": None}, 415, "content-type"),
        ({"content_encoding": "gzip"}, 415, "content-encoding"),
    ],
)
def test_wrong_headers(
    server: Server, keyed: Keyed, body: bytes, changes: dict[str, str | None], status: int, kind: str
) -> None:
    assert_problem(post(server, body, keyed.headers(**changes)), status, kind)


def test_unknown_model(server: Server, keyed: Keyed, body: bytes) -> None:
    answer = server.http.post("/v2/models/nobody/infer", content=body, headers=keyed.headers())
    assert_problem(answer, 404, "unknown-model")


def test_missing_length(server: Server, keyed: Keyed, body: bytes) -> None:
    answer = server.http.post(
        "/v2/models/tiny/infer", content=iter([body[:100], body[100:]]), headers=keyed.headers()
    )
    assert_problem(answer, 411, "length-required")


def test_oversized(server: Server, keyed: Keyed, body: bytes) -> None:
    limit = ciphertext_limit(small_parameters(), keyed.bundle.input.level)
    assert_problem(post(server, b"\0" * (limit + 1), keyed.headers()), 413, "too-large")
    still_works(server, keyed, body)


def test_a_huge_announcement_is_refused_before_a_byte_is_sent(server: Server, keyed: Keyed) -> None:
    url = httpx.URL(server.url)
    head = "".join(f"{k}: {v}\r\n" for k, v in keyed.headers(content_length=str(10**17)).items())
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall(f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_connection_that_ends_early_hurts_nobody(server: Server, keyed: Keyed, body: bytes) -> None:
    url = httpx.URL(server.url)
    head = "".join(f"{k}: {v}\r\n" for k, v in keyed.headers(content_length=str(len(body))).items())
    for sent in (0, 1, len(body) // 2, len(body) - 1):
        with socket.create_connection((url.host, url.port), timeout=20) as connection:
            connection.sendall(f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
            connection.sendall(body[:sent])
    still_works(server, keyed, body)


def corrupt(kind: str, body: bytes, tiny: CompiledModel) -> bytes:
    rng = np.random.default_rng(5)
    p, spec = small_parameters(), tiny.bundle.input
    good = random_ciphertext(p, spec.level, rng)
    if kind == "empty header":
        return b"\0" * 64
    if kind == "truncated":
        return body[: len(body) // 2]
    if kind == "one byte short":
        return body[:-1]
    if kind == "one byte long":
        return body + b"\0"
    if kind == "random":
        return rng.bytes(len(body))
    if kind == "other parameters":
        other = wide_parameters()
        return dump_ciphertext(other, random_ciphertext(other, 0, rng))
    if kind == "lower level":
        return dump_ciphertext(p, random_ciphertext(p, spec.level - 1, rng))
    if kind == "other scale":
        return dump_ciphertext(p, SeededCiphertext(good.b, good.seed, good.level, good.scale * 2))
    if kind == "residue too large":
        b = good.b.copy()
        b[1, 7] = p.data_primes[1]
        return dump_ciphertext(p, SeededCiphertext(b, good.seed, good.level, good.scale))
    assert kind == "header of zeros"
    return body[:8] + b"\0" * (len(body) - 8)


@pytest.mark.parametrize(
    "kind",
    [
        "empty header",
        "truncated",
        "one byte short",
        "one byte long",
        "random",
        "other parameters",
        "lower level",
        "other scale",
        "residue too large",
        "header of zeros",
    ],
)
def test_bytes_that_are_no_ciphertext_of_this_model(
    server: Server, keyed: Keyed, body: bytes, tiny: CompiledModel, kind: str
) -> None:
    assert_problem(post(server, corrupt(kind, body, tiny), keyed.headers()), 422, "bad-ciphertext")


def test_an_empty_body(server: Server, keyed: Keyed) -> None:
    assert_problem(post(server, b"", keyed.headers()), 422, "bad-ciphertext")


def test_many_damaged_ciphertexts(server: Server, keyed: Keyed, body: bytes) -> None:
    """Damage in the header is refused; damage within residues below their primes cannot be seen, and only gives noise."""
    rng = np.random.default_rng(11)
    header = int.from_bytes(body[:8], "little") + 8
    for _ in range(60):
        damaged = bytearray(body)
        damaged[rng.integers(header)] ^= 1 << int(rng.integers(8))
        answer = post(server, bytes(damaged), keyed.headers())
        # A flip within the seed or to equivalent JSON is another conformant object.
        assert answer.status_code in (200, 422)
        if answer.status_code == 422:
            assert_problem(answer, 422, "bad-ciphertext")
    still_works(server, keyed, body)


def test_noise_is_evaluated_like_any_ciphertext(server: Server, keyed: Keyed) -> None:
    rng = np.random.default_rng(3)
    noise = dump_ciphertext(small_parameters(), random_ciphertext(small_parameters(), 2, rng))
    assert post(server, noise, keyed.headers()).status_code == 200


def test_a_request_id_that_is_none_is_replaced(server: Server) -> None:
    answer = server.http.get("/v2", headers={"Request-Id": "x" * 65})
    assert len(answer.headers["request-id"]) == 32
    assert secrets.token_hex(16) != answer.headers["request-id"]
