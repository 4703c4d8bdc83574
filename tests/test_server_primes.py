"""Clients on primes of their own choice: the same server and model beside clients on the model's primes, and what a server refuses."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import random_keys, small_parameters, tiny_expected
from serving import Server, assert_problem, start_server
from test_client_checks import tampered
from test_server_keys import announce, outcome, patch, upload

from ckks.bundle import Bundle
from ckks.encoded import EncodedWeights
from ckks.errors import InputError, RemoteError
from ckks.modelfile import CompiledModel
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.rebase import rebase
from ckks.wire_keys import dump_keys
from he_serve import client as client_module
from he_serve.client import Client
from he_serve.keystore import KeyStore
from he_serve.problems import RequestError
from he_serve.registry import Deployed
from he_serve.server import NewKey
from he_serve.server import Server as ServerState
from he_serve.settings import Settings
from he_serve.worker import PrimeSets, load_models
from keys import SecretKey

MODEL = small_parameters()
X = np.array([0.5, 0.25, -0.5])


def chosen(first: int = 0) -> Parameters:
    """Primes of tiny's sizes, others than its own; `first` tells sets apart."""
    q0 = sorted(q for q in ntt_primes(4096, 28, 8, MODEL.moduli) if q < 1 << 28)[-1 - first]
    return Parameters(4096, (q0, *ntt_primes(4096, 25, 2, MODEL.moduli)), MODEL.special_primes, 1)


@pytest.fixture
def own_primes(monkeypatch: pytest.MonkeyPatch) -> None:
    """SEAL's keys stand in for OpenFHE's, which tests/test_openfhe.py has: the server cannot tell."""
    monkeypatch.setattr(client_module, "own_parameters", lambda *_: chosen())


def encoded_files(server: Server) -> dict[str, int]:
    return {
        p.name: p.stat().st_ino
        for p in (server.log.parent / "encoded").iterdir()
        if p.suffix == ".safetensors"
    }


@pytest.fixture(scope="module")
def idle(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    """A server's state without processes."""
    state = ServerState(Settings(models=models_folder, state=tmp_path_factory.mktemp("state")))
    yield state
    state.keys.close()


@pytest.fixture(scope="module")
def roomy(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(models_folder, tmp_path_factory.mktemp("state"), workers=2) as running:
        yield running


@pytest.mark.usefixtures("own_primes")
def test_beside_a_client_on_the_models_primes(roomy: Server, tiny: CompiledModel) -> None:
    expected, promised = tiny_expected(X), tiny.bundle.promised_error
    with Client(roomy.url) as usual, Client(roomy.url, own_primes=True) as own:
        label = usual.predict(X).label
        before = encoded_files(roomy)
        assert np.abs(own.predict_raw(X).logits - expected).max() <= promised
        assert own.predict(X).label == label
        assert own.bundle().checked_parameters() == chosen() != usual.bundle().checked_parameters()
        assert own.bundle().output.scale != usual.bundle().output.scale
        (made,) = set(encoded_files(roomy).items()) - set(before.items())
        # On the same primes, with a key that the caller had: nothing is encoded again.
        with Client(roomy.url, secret_key=SecretKey.generate(chosen())) as second:
            for _ in range(3):
                with ThreadPoolExecutor(3) as pool:  # for both workers
                    for raw in pool.map(lambda c: c.predict_raw(X), [own, second, usual]):
                        assert np.abs(raw.logits - expected).max() <= promised
            assert made in encoded_files(roomy).items()
        assert made in encoded_files(roomy).items()  # a key is left that needs it
        metrics = roomy.http.get("/metrics").text
        assert "he_serve_prime_sets 1.0" in metrics
    assert encoded_files(roomy) == before


@pytest.mark.usefixtures("own_primes")
def test_over_a_restart(models_folder: Path, tmp_path: Path) -> None:
    store, state = tmp_path / "keys", tmp_path / "state"
    with (
        start_server(models_folder, state) as server,
        Client(server.url, key_store=store, own_primes=True) as own,
    ):
        key, bundle = own.ensure_keys(), own.bundle()
        made = encoded_files(server)
    with start_server(models_folder, state) as server:
        assert encoded_files(server) == made and len(made) == 2
        with Client(server.url, key_store=store, own_primes=True) as own:
            entry = own._keys.index.uploaded[0].model_copy(update={"url": own.url})
            own._keys.add_uploaded(entry)
            assert own.ensure_keys() == key and own.bundle() == bundle
            assert own.predict_raw(X).logits.argmax() == tiny_expected(X).argmax()


def test_a_key_that_is_given(roomy: Server, tmp_path: Path) -> None:
    """On the model's primes it is used as any other; it never goes to a disk."""
    key = SecretKey.generate(MODEL)
    with Client(roomy.url, secret_key=key) as client:
        assert client.predict(X).label and client.bundle().checked_parameters() == MODEL
        assert client.new_keys() != "" and client._keys.secret_key(client.bundle()) is key
        assert not list(client._keys.path.glob("*.secret"))
    with pytest.raises(InputError, match="leave the key store out"):
        Client(roomy.url, secret_key=key, key_store=tmp_path)


def test_seal_chooses_no_primes(roomy: Server) -> None:
    with (
        Client(roomy.url, own_primes=True) as client,
        pytest.raises(InputError, match="SEAL takes the primes"),
    ):
        client.predict(X)


def changed(**changes: Any) -> dict[str, Any]:
    return chosen().to_json() | changes


DATA = list(chosen().data_primes)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "insecure": (changed(special_primes=list(ntt_primes(4096, 30, 1))), "below 128-bit security"),
    "not NTT-friendly": (
        changed(data_primes=[DATA[0], DATA[1], 33554467]),
        "33554467 is not a prime .* 1 mod 8192",
    ),
    "not prime": (changed(data_primes=[DATA[0], DATA[1], 8192 * 4097 + 1]), "is not a prime"),
    "repeated": (changed(data_primes=[DATA[0], DATA[1], DATA[1]]), "must be distinct"),
    "too few": (changed(data_primes=DATA[:2]), "needs 3 data primes"),
    "too many": (
        changed(data_primes=list(ntt_primes(4096, 20, 4)), special_primes=list(ntt_primes(4096, 22, 1))),
        "needs 3 data primes",
    ),
    "far from the scale": (
        changed(data_primes=[DATA[0], DATA[1], ntt_primes(4096, 24, 1)[0]]),
        "limb 2 .* too far",
    ),
    "another ring": (
        {
            "degree": 8192,
            "data_primes": [*ntt_primes(8192, 28, 1), *ntt_primes(8192, 25, 2)],
            "special_primes": list(ntt_primes(8192, 40, 1)),
            "digit_limbs": 1,
        },
        "needs N=4096",
    ),
    "too large": (changed(special_primes=[(1 << 61) - 1]), "of 20 to 60 bits"),
    "no list": (changed(data_primes=1), "at most 64 integers"),
    "no digits": (changed(digit_limbs=0), "positive integers"),
    "another field": (changed(more=1), "an object of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_sets(roomy: Server, tiny: CompiledModel, name: str) -> None:
    """By both routes, in the same words; nothing is kept of them."""
    parameters, match = REFUSED[name]
    before = encoded_files(roomy)
    for answer in (
        roomy.http.post("/v2/models/tiny/client", json={"parameters": parameters}),
        announce(roomy, tiny, b"x" * 1000, parameters=parameters),
    ):
        body = assert_problem(answer, 422, "prime-set")
        assert re.search(match, body["detail"]), body["detail"]
    assert encoded_files(roomy) == before


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
PRIMES = st.lists(st.sampled_from([*DATA, *MODEL.moduli, 0, -1, 1 << 64, 8193]) | JSON, max_size=5) | JSON


@settings(max_examples=400, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "degree": st.sampled_from([4096, 8192]) | JSON,
            "data_primes": PRIMES,
            "special_primes": PRIMES,
            "digit_limbs": st.sampled_from([1, 2]) | JSON,
        }
    )
    | JSON
)
def test_fuzzed_sets(idle: ServerState, tiny: CompiledModel, parameters: object) -> None:
    found: Deployed | None = None
    with contextlib.suppress(RequestError):  # of 422 "prime-set", as no other is raised there
        found = idle.on_primes(idle.model("tiny"), parameters)
    if found is not None:
        assert found.bundle == rebase(tiny.bundle, tiny.circuit, Parameters.from_json(parameters))[0]
        assert len(idle._on_primes) < 100


def test_bad_bodies(roomy: Server) -> None:
    url = "/v2/models/tiny/client"
    assert_problem(roomy.http.post(url, json={}), 422, "bad-request")
    assert_problem(roomy.http.post(url, json={"parameters": [1]}), 422, "bad-request")
    assert_problem(
        roomy.http.post(url, content=b"{" * 5000, headers={"Content-Type": "application/json"}),
        413,
        "too-large",
    )
    assert_problem(roomy.http.post("/v2/models/none/client", json={"parameters": {}}), 404, "unknown-model")


@pytest.fixture(scope="module")
def keys_on(tmp_path_factory: pytest.TempPathFactory, tiny: CompiledModel) -> Callable[[Parameters], bytes]:
    """Conformant key files of noise."""

    def make(p: Parameters) -> bytes:
        path = tmp_path_factory.mktemp("keys") / "keys"
        dump_keys(path, random_keys(p, tiny.bundle.key_needs(), np.random.default_rng(1)))
        return path.read_bytes()

    return make


def on(tiny: CompiledModel, p: Parameters) -> dict[str, Any]:
    """What an announcement of keys on other primes says differently."""
    return {"bundle_digest": rebase(tiny.bundle, tiny.circuit, p)[0].digest, "parameters": p.to_json()}


def test_places_for_prime_sets(
    models_folder: Path, tmp_path: Path, tiny: CompiledModel, keys_on: Callable[[Parameters], bytes]
) -> None:
    first, second = chosen(0), chosen(1)
    a, b = keys_on(first), keys_on(second)
    with start_server(models_folder, tmp_path, prime_sets=1) as server:
        one = announce(server, tiny, a, **on(tiny, first)).json()["id"]
        two = announce(server, tiny, b, **on(tiny, second)).json()["id"]  # an announcement takes no place
        assert_problem(announce(server, tiny, a, parameters=first.to_json()), 409, "bundle-changed")
        assert patch(server, one, 0, a).status_code == 204
        assert outcome(server, one)["state"] == "ready"
        assert len(encoded_files(server)) == 2
        assert_problem(announce(server, tiny, b, **on(tiny, second)), 507, "prime-sets-full")
        assert patch(server, two, 0, b).status_code == 204
        status = outcome(server, two)
        assert status["state"] == "rejected" and "--prime-sets" in status["reason"]
        assert upload(server, tiny, a, **on(tiny, first))["state"] == "ready"  # of the set that has its place
        own = on(tiny, MODEL)
        assert (
            announce(server, tiny, keys_on(MODEL), **own).status_code == 201
        )  # the model's own primes take none
        assert server.http.delete(f"/v2/keys/{one}").status_code == 204
        assert len(encoded_files(server)) == 2
        assert_problem(announce(server, tiny, b, **on(tiny, second)), 507, "prime-sets-full")
        with sqlite3.connect(tmp_path / "keys.sqlite") as db:
            rest = [row[0] for row in db.execute("SELECT id FROM keys WHERE state = 'ready'")]
        for key in rest:
            assert server.http.delete(f"/v2/keys/{key}").status_code == 204
        assert len(encoded_files(server)) == 1
        assert upload(server, tiny, b, **on(tiny, second))["state"] == "ready"
        assert len(encoded_files(server)) == 2


@pytest.mark.parametrize(
    ("limits", "match"), [({"prime_sets": 0}, "--prime-sets"), ({"weights_memory": 9000}, "--weights-memory")]
)
def test_no_places_and_no_memory(
    models_folder: Path, tmp_path: Path, tiny: CompiledModel, limits: dict[str, int], match: str
) -> None:
    state = ServerState(Settings(models=models_folder, state=tmp_path, **limits))
    new = NewKey(model="tiny", size=1, sha256="0" * 64, **on(tiny, chosen()))
    with pytest.raises(RequestError, match=match) as refused:
        state.create_key(new)
    assert (refused.value.status, refused.value.kind) == (507, "prime-sets-full")
    state.keys.close()


def test_a_second_process_maps_what_the_first_encoded(
    models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, primes = [str(models_folder / "tiny.hem")], json.dumps(chosen().to_json())

    def sets() -> PrimeSets:
        return PrimeSets(load_models(paths, "cpu", 1, tmp_path), 1, "cpu", 1)

    first = sets()
    made = first.get("tiny", primes)
    assert first.get("tiny", primes) is made
    with monkeypatch.context() as patched:
        patched.setattr(EncodedWeights, "_encode", lambda *_: pytest.fail("encoded again"))
        second = sets()
        mapped = second.get("tiny", primes)
    assert (mapped.bundle, mapped.parameters) == (made.bundle, chosen())
    other = second.get("tiny", json.dumps(chosen(1).to_json()))  # room for one: the other is let go
    assert second.get("tiny", primes) is not mapped and other.bundle != made.bundle
    assert first.get("tiny", "").parameters == MODEL
    assert made.encoded is not None
    made.encoded.unlink()  # its last key was revoked: it must not be held on to
    assert first.get("tiny", primes) is not made


@pytest.mark.usefixtures("own_primes")
@pytest.mark.parametrize(
    "change",
    [
        {"promised_error": 1.0},
        {"description": "another"},
        {"weights_digest": "0" * 64},
        {"rotations": []},
        {"parameters": chosen(1).to_json()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_clients_refuse_another_model_in_place_of_theirs(roomy: Server, change: dict[str, Any]) -> None:
    def tamper(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if request.method != "POST" or not request.url.path.endswith("/client"):
            return answer
        data = json.loads(answer.content)
        for name, value in change.items():
            target = data["outputs"][0] if name == "promised_error" else data
            target[name] = value
        return httpx.Response(200, content=Bundle.from_bytes(json.dumps(data).encode()).to_bytes())

    with (
        tampered(Client(roomy.url, own_primes=True), tamper) as client,
        pytest.raises(RemoteError, match="not that of tiny"),
    ):
        client.ensure_keys()


def test_key_stores_of_older_servers_are_taken_up(models_folder: Path, tmp_path: Path) -> None:
    made = Settings(models=models_folder, state=tmp_path / "new")
    KeyStore(made).close()
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "new", old)
    with sqlite3.connect(old / "keys.sqlite") as db:
        db.execute("ALTER TABLE keys DROP COLUMN primes")
    store = KeyStore(Settings(models=models_folder, state=old))
    record = store.create("tiny", "0" * 64, 1, "0" * 64, 1)
    assert store.get(record.id).primes == ""
    store.close()
