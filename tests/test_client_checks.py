"""What the client refuses: weak or changed bundles, answers that are not what the model promises, inputs that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from samples import random_ciphertext, small_parameters
from serving import Keyed, Server

from ckks.bundle import Bundle, InputSpec, Packing
from ckks.errors import InputError, RemoteError
from ckks.modelfile import CompiledModel
from ckks.primes import ntt_primes
from ckks.types import SeededCiphertext
from ckks.wire import dump_ciphertext
from he_serve.client import Client
from he_serve.images import picture_values, read_image, read_rows, to_input
from he_serve.packing import copies, pack, unpack
from he_serve.prediction import RawPrediction, softmax, supported_digits

X = np.array([0.5, 0.25, -0.5])
Tamper = Callable[[httpx.Request, httpx.Response], httpx.Response]


class Tampering(httpx.BaseTransport):
    """The real connection, with somebody in it who changes answers."""

    def __init__(self, tamper: Tamper) -> None:
        self._inner, self._tamper = httpx.HTTPTransport(), tamper

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        real = self._inner.handle_request(request)
        seen = httpx.Response(real.status_code, headers=real.headers, content=real.read())
        shown = self._tamper(request, seen)
        return httpx.Response(
            shown.status_code, headers=shown.headers, stream=httpx.ByteStream(shown.content)
        )

    def close(self) -> None:
        self._inner.close()


def tampered(client: Client, tamper: Tamper) -> Client:
    """The same client behind somebody who changes answers."""
    client._http.close()
    client._http = httpx.Client(base_url=client.url, transport=Tampering(tamper), timeout=60)
    return client


def with_bundle(server: Server, change: Callable[[dict[str, Any]], None]) -> Client:
    """A client that is sent a changed bundle of tiny."""

    def tamper(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if not request.url.path.endswith("/client"):
            return answer
        data = json.loads(answer.content)
        change(data)
        return httpx.Response(200, content=json.dumps(data, indent=1).encode())

    return tampered(Client(server.url, model="tiny"), tamper)


# ---- bundles ----


def test_weak_parameters_are_refused(server: Server) -> None:
    def weaken(data: dict[str, Any]) -> None:
        data["parameters"]["special_primes"] = list(ntt_primes(4096, 29, 1))  # two bits too many for N = 4096

    with with_bundle(server, weaken) as client, pytest.raises(RemoteError, match="128-bit"):
        client.predict(X)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(name="other"),
        lambda data: data.update(code="import os"),
        lambda data: data["parameters"].update(degree=4097),
        lambda data: data["inputs"][0]["packing"].update(slots=[0, 0, 0]),
        lambda data: data.update(rotations=[{"steps": 1, "level": 60}]),
    ],
)
def test_malformed_bundles_are_refused(server: Server, change: Callable[[dict[str, Any]], None]) -> None:
    with with_bundle(server, change) as client, pytest.raises(RemoteError, match="bundle"):
        client.bundle()


def test_a_changed_bundle_is_refused(server: Server, tmp_path: Path, tiny: CompiledModel) -> None:
    with Client(server.url, model="tiny", key_store=tmp_path) as client:
        assert client.bundle().digest == tiny.bundle.digest
    with (
        tampered(Client(server.url, model="tiny", key_store=tmp_path), _other_description) as client,
        pytest.raises(RemoteError, match="pinned"),
    ):
        client.predict(X)
    with tampered(Client(server.url, model="tiny", key_store=tmp_path), _other_description) as client:
        # The server does not know that version, but the client now insists on it.
        with pytest.raises(RemoteError, match="another bundle"):
            client.new_keys()
        assert client.bundle().description == "another version"


def test_an_explicit_pin(server: Server, tiny: CompiledModel) -> None:
    with Client(server.url, model="tiny", pin=tiny.bundle.digest) as client:
        client.bundle()
    with Client(server.url, model="tiny", pin="0" * 64) as client, pytest.raises(RemoteError, match="pinned"):
        client.bundle()


def _other_description(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    if not request.url.path.endswith("/client"):
        return answer
    bundle = Bundle.from_bytes(answer.content).model_copy(update={"description": "another version"})
    return httpx.Response(200, content=bundle.to_bytes())


# ---- answers ----


def with_answer(keyed: Keyed, tamper: Tamper) -> Client:
    """The shared client's keys, with the answers to its inferences changed."""
    source = keyed.client
    client = Client(source.url, model="tiny")
    client._keys, client._ready_id, client._bundle = source._keys, keyed.key_id, keyed.bundle
    assert client._temporary is not None
    client._temporary.cleanup()
    client._temporary = None  # the keys stay with the shared client

    def only_infer(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        return tamper(request, answer) if request.url.path.endswith("/infer") else answer

    return tampered(client, only_infer)


def content(make: Callable[[bytes], bytes]) -> Tamper:
    """Another body under the same headers."""

    def tamper(_: httpx.Request, answer: httpx.Response) -> httpx.Response:
        kept = {
            k: v for k, v in answer.headers.items() if k in ("request-id", "bundle-digest", "server-timing")
        }
        return httpx.Response(200, headers=kept, content=make(answer.content))

    return tamper


def at(level: int, scale_factor: float) -> bytes:
    p, rng = small_parameters(), np.random.default_rng(1)
    noise = random_ciphertext(p, level, rng)
    return dump_ciphertext(p, SeededCiphertext(noise.b, noise.seed, level, noise.scale * scale_factor))


@pytest.mark.parametrize(
    "make",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[: len(data) // 2],
        lambda data: np.random.default_rng(2).bytes(len(data)),
        lambda data: at(1, 1.0),
        lambda data: at(0, 2.0),
    ],
)
def test_answers_of_the_wrong_form_are_refused(keyed: Keyed, make: Callable[[bytes], bytes]) -> None:
    with with_answer(keyed, content(make)) as client, pytest.raises(RemoteError, match="answer"):
        client.predict(X)


def test_an_endless_answer_is_cut_off(keyed: Keyed) -> None:
    with (
        with_answer(keyed, content(lambda data: bytes(10_000_000))) as client,
        pytest.raises(RemoteError, match="longer than"),
    ):
        client.predict(X)


def test_an_answer_that_decrypts_to_noise_is_refused(keyed: Keyed) -> None:
    p, output = small_parameters(), keyed.bundle.output

    def noise(_: bytes) -> bytes:
        random = random_ciphertext(p, output.level, np.random.default_rng(3))
        return dump_ciphertext(p, SeededCiphertext(random.b, random.seed, output.level, output.scale))

    with with_answer(keyed, content(noise)) as client, pytest.raises(RemoteError, match="plausible"):
        client.predict(X)


def test_an_answer_whose_copies_differ_is_refused(keyed: Keyed) -> None:
    p, output = small_parameters(), keyed.bundle.output
    slots = np.zeros(p.slots)
    slots[4] = 1.0  # in the second copy only

    def uneven(_: bytes) -> bytes:
        return dump_ciphertext(p, keyed.secret.encrypt(slots, output.level, output.scale))

    with (
        with_answer(keyed, content(uneven)) as client,
        pytest.raises(RemoteError, match="contradicts itself"),
    ):
        client.predict(X)


def test_an_answer_beyond_what_the_model_gives_is_refused(keyed: Keyed) -> None:
    p, output = small_parameters(), keyed.bundle.output

    def far_off(_: bytes) -> bytes:
        slots = np.full(p.slots, 1.01 * output.largest)
        return dump_ciphertext(p, keyed.secret.encrypt(slots, output.level, output.scale))

    with with_answer(keyed, content(far_off)) as client, pytest.raises(InputError, match="unlike them"):
        client.predict(X)


@pytest.mark.parametrize("header", ["request-id", "bundle-digest"])
def test_an_answer_to_another_request_is_refused(keyed: Keyed, header: str) -> None:
    def tamper(_: httpx.Request, answer: httpx.Response) -> httpx.Response:
        answer.headers[header] = "0" * 64
        return answer

    with with_answer(keyed, tamper) as client, pytest.raises(RemoteError, match="another request"):
        client.predict(X)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"title": 1}', b"\xff"])
def test_failures_that_are_no_problems(keyed: Keyed, body: bytes) -> None:
    def tamper(_: httpx.Request, __: httpx.Response) -> httpx.Response:
        return httpx.Response(502, content=body)

    with with_answer(keyed, tamper) as client, pytest.raises(RemoteError, match="status 502"):
        client.predict(X)


def test_a_problem_is_told_with_its_detail(keyed: Keyed) -> None:
    def tamper(_: httpx.Request, __: httpx.Response) -> httpx.Response:
        return httpx.Response(503, json={"title": "Service Unavailable", "detail": "queue full"})

    with (
        with_answer(keyed, tamper) as client,
        pytest.raises(RemoteError, match=r"Service Unavailable \(503\): queue full"),
    ):
        client.predict(X)


def test_nobody_listens() -> None:
    with (
        Client("http://127.0.0.1:9", model="tiny") as client,
        pytest.raises(RemoteError, match="he-serve serve"),
    ):
        client.predict(X)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InputError, match="not a server's address"):
        Client(url)


def test_a_model_must_be_named_where_it_does_not_exist(server: Server) -> None:
    with Client(server.url, model="nobody") as client, pytest.raises(RemoteError, match="no model is called"):
        client.bundle()


# ---- keys ----


def test_a_broken_upload_is_resumed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("he_serve.client._PART", 100_000)
    failures = iter([True, False, True])

    def tamper(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if request.method == "PATCH" and next(failures, False):
            raise httpx.ReadError(
                "broken", request=request
            )  # the server has the part, the client does not know
        return answer

    with tampered(Client(server.url, model="tiny"), tamper) as client:
        assert client.predict(X).label in ("a", "b")
        assert client.setup.key_bytes > 400_000
    assert next(failures, None) is None


def test_keys_are_kept_and_used_again(server: Server, tmp_path: Path) -> None:
    with Client(server.url, model="tiny", key_store=tmp_path, passphrase="correct horse") as client:
        first = client.ensure_keys()
    assert {p.suffix for p in tmp_path.iterdir()} == {".secret", ".json"}
    with Client(server.url, model="tiny", key_store=tmp_path, passphrase="correct horse") as client:
        assert client.ensure_keys() == first
        client.predict(X)
        assert client.revoke()
        assert not client.revoke()
        assert client.ensure_keys() != first
        client.predict(X)
        second = client.new_keys()
        client.predict(X)
    assert second != first
    assert len(list(tmp_path.glob("*.secret"))) == 1
    with (
        Client(server.url, model="tiny", key_store=tmp_path, passphrase="wrong") as client,
        pytest.raises(InputError, match="passphrase"),
    ):
        client.predict(X)


def test_keys_in_memory_are_revoked_at_the_end(server: Server) -> None:
    with Client(server.url, model="tiny") as client:
        key_id = client.ensure_keys()
    assert server.http.get(f"/v2/keys/{key_id}").status_code == 404


# ---- inputs and outputs ----


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.zeros(4), "shape"),
        (np.zeros((2, 3)), "shape"),
        (np.array([0.0, 2.0, 0.0]), "values from -1 to 1"),
        (np.array([0.0, np.nan, 0.0]), "values"),
        (np.array(["a", "b", "c"]), "numbers"),
        (Image.new("RGB", (8, 8)), "not a picture"),
        (Path("no-such-file.png"), "no such file"),
    ],
)
def test_inputs_that_do_not_fit(keyed: Keyed, x: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        keyed.client.predict(x)


def picture_spec(channels: int) -> InputSpec:
    count = channels * 4
    packing = Packing(shape=[channels, 2, 2], slots=list(range(count)), period=16)
    return InputSpec(name="x", packing=packing, low=0.0, high=1.0, level=1, scale=2.0**20)


def test_pictures_become_tensors(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    Image.fromarray(pixels).save(tmp_path / "x.png")
    values = to_input(str(tmp_path / "x.png"), picture_spec(3))
    assert np.array_equal(values, pixels.transpose(2, 0, 1) / 255)
    grey = to_input(tmp_path / "x.png", picture_spec(1))
    assert grey.shape == (1, 2, 2)
    assert np.array_equal(grey[0], np.asarray(Image.fromarray(pixels).convert("L")) / 255)
    assert picture_values(Image.new("L", (50, 70), 255), (3, 28, 30)).shape == (3, 28, 30)
    assert picture_values(Image.new("RGBA", (5, 7), (255, 0, 0, 9)), (3, 2, 2)).max() == 1.0


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(InputError, match="not a picture"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["missing", "text", "no x", "objects", "empty", "infinite"])
def test_rows_that_are_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.npz"
    if kind == "text":
        path.write_text("hello")
    elif kind == "no x":
        np.savez(path, y=np.zeros((1, 2)))
    elif kind == "objects":
        np.savez(path, x=np.array([[{}]], dtype=object))
    elif kind == "empty":
        np.savez(path, x=np.zeros((0, 2)))
    elif kind == "infinite":
        np.savez(path, x=np.array([[np.inf]]))
    with pytest.raises(InputError):
        read_rows(path)


def test_packing_and_back() -> None:
    packing = Packing(shape=[2, 2], slots=[5, 0, 3, 6], period=8)
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    slots = pack(values, packing)
    assert slots.tolist() == [2.0, 0, 0, 3.0, 0, 1.0, 4.0, 0]
    assert np.array_equal(unpack(np.tile(slots, 4), packing), values[None])
    assert np.array_equal(copies(np.tile(slots, 4), packing), np.tile(values.reshape(-1), (4, 1, 1)))


@given(
    lanes=st.sampled_from([1, 2, 8]),
    images=st.integers(1, 8),
    stacked=st.booleans(),
    repeats=st.sampled_from([1, 4]),
)
def test_lanes_and_back(lanes: int, images: int, stacked: bool, repeats: int) -> None:
    layout = {"slots": [0], "period": 1} if stacked else {"slots": [5, 0, 3], "period": 8}
    packing = Packing(shape=[3], lanes=lanes, stacked=stacked, **layout)
    values = np.random.default_rng(images).normal(size=(min(images, lanes), 3))
    slots = np.tile(pack(values, packing), repeats)
    assert slots.shape == ((3,) if stacked else ()) + (packing.period * lanes * repeats,)
    assert np.array_equal(unpack(slots, packing), np.resize(values, (lanes, 3)))
    found = copies(slots, packing)
    assert found.shape == (repeats, lanes, 3) and np.array_equal(
        found, np.broadcast_to(found[0], found.shape)
    )
    if not stacked:
        assert np.array_equal(slots.reshape(-1, lanes)[5, : len(values)], values[:, 0])


def test_turned_copies_of_an_input() -> None:
    packing = Packing(shape=[3], slots=[0, 1, 3], period=16, copies=4, shift=3)
    slots = pack(np.array([1.0, 2.0, 3.0]), packing)
    assert slots.tolist() == [1, 2, 0, 3, 3, 1, 2, 0, 0, 3, 1, 2, 2, 0, 3, 1]
    for wrong in ({"copies": 3}, {"copies": 32}, {"copies": 8}):
        with pytest.raises(ValidationError):
            Packing(**{"shape": [3], "slots": [0, 1, 3], "period": 16, "shift": 1} | wrong)


def test_probabilities_show_no_more_than_the_promise_supports(tiny: CompiledModel) -> None:
    assert softmax(np.array([1000.0, 1000.0])).tolist() == [0.5, 0.5]
    assert [supported_digits(e) for e in (3.0, 0.1, 0.01, 1e-3, 1e-12)] == [0, 1, 2, 3, 6]
    raw = RawPrediction(np.array([0.123456, 1.98765]), {}, 0, 0)
    shown = raw.rounded(tiny.bundle.output)
    assert shown.label == "b"
    assert all(round(p, 2) == p for p in shown.probabilities.values())  # the promise of tiny is 0.01
    # The noise of two runs with the same input does not show.
    again = RawPrediction(raw.logits + 1e-4, {}, 0, 0).rounded(tiny.bundle.output)
    assert again.probabilities == shown.probabilities
