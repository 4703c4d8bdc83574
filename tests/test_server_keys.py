"""Key upload: the resumable protocol, its limits, validation, revocation."""

from __future__ import annotations

import hashlib
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from samples import random_keys, small_parameters, wide_parameters
from serving import Keyed, Server, assert_problem

from ckks.modelfile import CompiledModel
from ckks.types import KeyNeeds
from ckks.wire_keys import dump_keys, key_file_size

PART = {"Content-Type": "application/offset+octet-stream"}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory, tiny: CompiledModel) -> bytes:
    """A conformant key file; noise, which no check can tell from keys."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    dump_keys(path, random_keys(small_parameters(), tiny.bundle.key_needs(), np.random.default_rng(1)))
    return path.read_bytes()


def announce(server: Server, tiny: CompiledModel, data: bytes, **changes: Any) -> httpx.Response:
    body = {
        "model": "tiny",
        "bundle_digest": tiny.bundle.digest,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    } | changes
    return server.http.post("/v2/keys", json={k: v for k, v in body.items() if v is not None})


def patch(server: Server, key: str, offset: object, data: bytes, **headers: str) -> httpx.Response:
    return server.http.patch(
        f"/v2/keys/{key}", content=data, headers=PART | {"Upload-Offset": str(offset)} | headers
    )


def outcome(server: Server, key: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while (status := server.http.get(f"/v2/keys/{key}").json())["state"] == "validating":
        assert time.monotonic() < end
        time.sleep(0.02)
    return dict(status)


def upload(server: Server, tiny: CompiledModel, data: bytes, **changes: Any) -> dict[str, Any]:
    key = announce(server, tiny, data, **changes).json()["id"]
    assert patch(server, key, 0, data).status_code == 204
    return outcome(server, key)


def test_upload_in_parts(server: Server, tiny: CompiledModel, key_file: bytes) -> None:
    created = announce(server, tiny, key_file)
    assert created.status_code == 201
    key = created.json()["id"]
    assert len(key) >= 43  # 256 bits in base64
    assert created.headers["location"] == f"/v2/keys/{key}"
    half = len(key_file) // 2
    first = patch(server, key, 0, key_file[:half])
    assert (first.status_code, first.headers["upload-offset"]) == (204, str(half))
    head = server.http.head(f"/v2/keys/{key}")
    assert (head.headers["upload-offset"], head.headers["upload-length"]) == (str(half), str(len(key_file)))
    body = assert_problem(patch(server, key, 0, key_file), 409, "upload-offset")
    assert str(half) in body["detail"]
    assert_problem(patch(server, key, half, key_file[half:] + b"x"), 413, "too-large")
    assert patch(server, key, half, key_file[half:]).status_code == 204
    status = outcome(server, key)
    assert (status["state"], status["reason"], status["offset"]) == ("ready", "", len(key_file))
    assert_problem(patch(server, key, len(key_file), b"x"), 409, "upload-complete")


def test_a_broken_connection_keeps_what_arrived(server: Server, tiny: CompiledModel, key_file: bytes) -> None:
    key = announce(server, tiny, key_file).json()["id"]
    url, sent = httpx.URL(server.url), 200_000
    with socket.create_connection((url.host, url.port)) as connection:
        head = f"PATCH /v2/keys/{key} HTTP/1.1\r\nHost: x\r\nUpload-Offset: 0\r\nContent-Length: {len(key_file)}\r\n"
        connection.sendall(f"{head}Content-Type: {PART['Content-Type']}\r\n\r\n".encode() + key_file[:sent])
    end = time.monotonic() + 20
    offset = 0
    while offset < sent and time.monotonic() < end:
        offset = int(server.http.head(f"/v2/keys/{key}").headers["upload-offset"])
    assert offset == sent
    while (answer := patch(server, key, offset, key_file[offset:])).status_code == 409:  # until it noticed
        assert_problem(answer, 409, "upload-busy")
        assert time.monotonic() < end
    assert answer.status_code == 204
    assert outcome(server, key)["state"] == "ready"


@pytest.mark.parametrize(
    ("changes", "status", "kind"),
    [
        ({"model": "nobody"}, 404, "unknown-model"),
        ({"bundle_digest": "0" * 64}, 409, "bundle-changed"),
        ({"bundle_digest": "xyz"}, 422, "bad-request"),
        ({"size": 1}, 422, "key-size"),
        ({"size": 1 << 40}, 422, "key-size"),
        ({"size": -1}, 422, "bad-request"),
        ({"size": "12"}, 422, "bad-request"),
        ({"size": 1 << 80}, 422, "bad-request"),
        ({"sha256": None}, 422, "bad-request"),
        ({"sha256": "0" * 63}, 422, "bad-request"),
        ({"more": 1}, 422, "bad-request"),
    ],
)
def test_bad_announcements(
    server: Server,
    tiny: CompiledModel,
    key_file: bytes,
    changes: dict[str, Any],
    status: int,
    kind: str,
) -> None:
    assert_problem(announce(server, tiny, key_file, **changes), status, kind)


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff\xfe", b"null", b"[" * 4000])
def test_bad_json(server: Server, body: bytes) -> None:
    answer = server.http.post("/v2/keys", content=body, headers={"Content-Type": "application/json"})
    assert_problem(answer, 422, "bad-request")


def test_announcement_form(server: Server) -> None:
    assert_problem(server.http.post("/v2/keys", content=b"{}"), 415, "content-type")
    json_type = {"Content-Type": "application/json"}
    assert_problem(
        server.http.post("/v2/keys", content=iter([b"{}"]), headers=json_type), 411, "length-required"
    )
    assert_problem(server.http.post("/v2/keys", content=b" " * 5000, headers=json_type), 413, "too-large")


def test_upload_form(server: Server, tiny: CompiledModel, key_file: bytes) -> None:
    key = announce(server, tiny, key_file).json()["id"]
    assert_problem(patch(server, "A" * 43, 0, b"x"), 404, "unknown-key")
    assert_problem(patch(server, key, "", b"x"), 409, "upload-offset")
    assert_problem(patch(server, key, -1, b"x"), 409, "upload-offset")
    assert_problem(patch(server, key, 0, b"x", **{"Content-Type": "text/plain"}), 415, "content-type")
    answer = server.http.patch(f"/v2/keys/{key}", content=iter([b"x"]), headers=PART | {"Upload-Offset": "0"})
    assert_problem(answer, 411, "length-required")
    assert server.http.head(f"/v2/keys/{key}").headers["upload-offset"] == "0"
    assert server.http.delete(f"/v2/keys/{key}").status_code == 204


def bad_key_file(kind: str, good: bytes, folder: Path, tiny: CompiledModel) -> bytes:
    rng, p, needs = np.random.default_rng(2), small_parameters(), tiny.bundle.key_needs()
    header = 8 + int.from_bytes(good[:8], "little")
    if kind == "random bytes":
        return rng.bytes(len(good))
    if kind == "zeros":
        return b"\0" * len(good)
    if kind == "one byte short":
        return good[:-1]
    if kind == "one byte long":
        return good + b"\0"
    if kind == "residue too large":
        return good[:header] + b"\xff" * 4 + good[header + 4 :]
    if kind == "last residue too large":
        return good[:-4] + b"\xff" * 4
    if kind == "header of another":
        return good.replace(b"galois-", b"galoix-")
    keys = random_keys(p, needs, rng)
    if kind == "other parameters":
        keys = random_keys(wide_parameters(), KeyNeeds(None, {1: 0}), rng)
    path = folder / "keys"
    dump_keys(path, keys)
    data = path.read_bytes()
    least, most = key_file_size(p, needs)
    return data[:most] if len(data) > most else data + b"\0" * max(0, least + 1 - len(data))


@pytest.mark.parametrize(
    "kind",
    [
        "random bytes",
        "zeros",
        "one byte short",
        "one byte long",
        "residue too large",
        "last residue too large",
        "header of another",
        "other parameters",
    ],
)
def test_files_that_are_no_keys_of_this_model(
    server: Server, keyed: Keyed, tiny: CompiledModel, key_file: bytes, tmp_path: Path, kind: str
) -> None:
    status = upload(server, tiny, bad_key_file(kind, key_file, tmp_path, tiny))
    assert status["state"] == "rejected"
    assert "Traceback" not in status["reason"] and status["reason"]
    answer = server.http.post(
        "/v2/models/tiny/infer", content=b"x", headers=keyed.headers(key_id=status["id"])
    )
    assert_problem(answer, 409, "key-rejected")


def test_wrong_sha256(server: Server, tiny: CompiledModel, key_file: bytes) -> None:
    status = upload(server, tiny, key_file, sha256="0" * 64)
    assert status["state"] == "rejected"
    assert "SHA-256" in status["reason"]


def test_an_unfinished_key_cannot_be_used(
    server: Server, keyed: Keyed, tiny: CompiledModel, key_file: bytes
) -> None:
    key = announce(server, tiny, key_file).json()["id"]
    answer = server.http.post("/v2/models/tiny/infer", content=b"x", headers=keyed.headers(key_id=key))
    assert_problem(answer, 409, "key-not-ready")


def test_revoked_keys_are_gone(server: Server, keyed: Keyed, tiny: CompiledModel, key_file: bytes) -> None:
    key = upload(server, tiny, key_file)["id"]
    assert server.http.delete(f"/v2/keys/{key}").status_code == 204
    assert_problem(server.http.delete(f"/v2/keys/{key}"), 404, "unknown-key")
    assert_problem(server.http.get(f"/v2/keys/{key}"), 404, "unknown-key")
    assert server.http.head(f"/v2/keys/{key}").status_code == 404
    answer = server.http.post("/v2/models/tiny/infer", content=b"x", headers=keyed.headers(key_id=key))
    assert_problem(answer, 404, "unknown-key")


def test_keys_cannot_be_listed(server: Server) -> None:
    assert_problem(server.http.get("/v2/keys"), 405, "method-not-allowed")
