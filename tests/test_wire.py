"""The wire format: round trips, and no foreign byte gets through."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from samples import (
    SCALE,
    random_ciphertext,
    random_keys,
    random_residues,
    small_parameters,
    tiny_model,
    wide_parameters,
)

from ckks import seeds, wire, wire_keys
from ckks.errors import FormatError
from ckks.expanded import expand_keys, map_keys
from ckks.parameters import Parameters
from ckks.types import Ciphertext, KeyNeeds, SeededPublicKey

RNG = np.random.default_rng(7)
PARAMETERS = [small_parameters(), wide_parameters()]


@pytest.mark.parametrize("p", PARAMETERS, ids=str)
def test_ciphertext_round_trip(p: Parameters) -> None:
    for level in range(p.max_level + 1):
        polys = random_residues(p, (2,), p.data_rows(level), RNG)
        data = wire.dump_ciphertext(p, Ciphertext(polys, level, SCALE))
        assert len(data) <= wire.ciphertext_limit(p, level)
        loaded = wire.load_ciphertext(data, p, level, SCALE)
        assert np.array_equal(loaded.polys, polys) and loaded.level == level and loaded.scale == SCALE


@pytest.mark.parametrize("p", PARAMETERS, ids=str)
def test_seeded_ciphertext_is_half_and_expands(p: Parameters) -> None:
    fresh = random_ciphertext(p, p.max_level, RNG)
    data = wire.dump_ciphertext(p, fresh)
    loaded = wire.load_ciphertext(data, p, fresh.level, SCALE)
    assert np.array_equal(loaded.polys[0], fresh.b)
    assert np.array_equal(loaded.polys[1], seeds.expand(p, fresh.seed, 0, p.data_rows(fresh.level)))
    assert len(data) < 0.52 * len(wire.dump_ciphertext(p, loaded))


def test_seed_expansion_is_fixed() -> None:
    """A golden value: another implementation of the wire format must draw the same polynomial."""
    p = small_parameters()
    row = seeds.expand(p, bytes(range(32)), 1, (2,))[0]
    assert row.shape == (p.degree,) and row.max() < p.moduli[2]
    assert row[:3].tolist() == [6344814, 2679280, 19335501]  # by openssl dgst -shake256
    # Uniform: the mean of 4096 values lies within 5 standard deviations of q/2.
    assert abs(row.mean() / p.moduli[2] - 0.5) < 5 / np.sqrt(12 * p.degree)


def test_key_file_round_trip(tmp_path: Path) -> None:
    for p in PARAMETERS:
        needs = KeyNeeds(p.max_level - 1, {1: p.max_level, 5: 0})
        keys = random_keys(p, needs, RNG)
        source, target = tmp_path / "keys", tmp_path / "expanded"
        wire_keys.dump_keys(source, keys)
        least, most = wire_keys.key_file_size(p, needs)
        assert least < source.stat().st_size <= most
        expand_keys(source, target, p, needs)
        mapped = map_keys(target, p)
        assert mapped.relinearisation is not None and keys.relinearisation is not None
        assert set(mapped.galois) == {p.galois_element(1), p.galois_element(5)}
        assert np.array_equal(mapped.relinearisation.digits.unpack()[:, 0], keys.relinearisation.b)
        for element, key in keys.galois.items():
            got, digits = mapped.galois[element], mapped.galois[element].digits.unpack()
            assert got.level == key.level and np.array_equal(digits[:, 0], key.b)
            for j in range(key.b.shape[0]):
                assert np.array_equal(digits[j, 1], seeds.expand(p, key.seed, j, p.extended_rows(key.level)))


@pytest.mark.parametrize("p", PARAMETERS, ids=str)
def test_public_key_round_trip_and_refusals(p: Parameters) -> None:
    rows = tuple(range(len(p.moduli)))
    key = SeededPublicKey(p, random_residues(p, (), rows, RNG), RNG.bytes(32))
    data = wire_keys.dump_public_key(key)
    loaded = wire_keys.load_public_key(data, p)
    assert np.array_equal(loaded.b, key.b) and loaded.seed == key.seed
    other = PARAMETERS[p is PARAMETERS[0]]
    ciphertext = wire.dump_ciphertext(p, random_ciphertext(p, 0, RNG))
    for bad in (
        b"",
        data[:-1],
        data + b"\0",
        data + bytes(1 << 20),
        wire_keys.dump_public_key(key)[8:],
        ciphertext,
    ):
        with pytest.raises(FormatError):
            wire_keys.load_public_key(bad, p)
    with pytest.raises(FormatError):
        wire_keys.load_public_key(data, other)


def _header(data: bytes) -> tuple[dict, bytes]:
    length = struct.unpack_from("<Q", data)[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _rebuild(header: dict, payload: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def test_wrong_ciphertexts_are_refused_with_a_reason() -> None:
    p = small_parameters()
    data = wire.dump_ciphertext(p, random_ciphertext(p, 2, RNG))
    header, payload = _header(data)

    def with_meta(**changes: str | None) -> bytes:
        meta = {k: v for k, v in (header["__metadata__"] | changes).items() if v is not None}
        return _rebuild(header | {"__metadata__": meta}, payload)

    assert wire.load_ciphertext(with_meta(), p, 2, SCALE).level == 2
    cases = {
        "empty": (b"", "truncated"),
        "truncated": (data[:-1], "safetensors"),
        "trailing": (data + b"\0", "safetensors"),
        "huge header": (struct.pack("<Q", 1 << 62) + data[8:], "header"),
        "too long": (data + bytes(wire.ciphertext_limit(p, 2)), "more than"),
        "other parameters": (
            wire.dump_ciphertext(PARAMETERS[1], random_ciphertext(PARAMETERS[1], 0, RNG)),
            "parameters",
        ),
        "lower level": (wire.dump_ciphertext(p, random_ciphertext(p, 1, RNG)), "level 2"),
        "scale": (with_meta(scale=(SCALE * 2).hex()), "scale"),
        "scale nan": (with_meta(scale="nan"), "scale"),
        "scale text": (with_meta(scale="many"), "scale"),
        "version": (with_meta(version="2"), "version"),
        "kind": (with_meta(kind="evaluation keys"), "expected ciphertext"),
        "seed short": (with_meta(seed="ab"), "seed"),
        "seed lost": (with_meta(seed=None), "limbs"),
        "extra metadata": (with_meta(note="hello"), "metadata"),
        "residue": (_rebuild(header, b"\xff" * 4 + payload[4:]), "not below"),
        "shape": (_rebuild(header | {"0.0": header["0.0"] | {"shape": [2, 2048]}}, payload), "length"),
        "no metadata": (
            _rebuild({k: v for k, v in header.items() if k != "__metadata__"}, payload),
            "header",
        ),
    }
    for name, (bad, reason) in cases.items():
        with pytest.raises(FormatError, match=reason):
            print(name, wire.load_ciphertext(bad, p, 2, SCALE))


def _mutate(data: bytes, rng: np.random.Generator, header_bytes: int) -> bytes:
    """One to four random edits: bit flips, overwrites, cuts, insertions; half of them in the header, where structure lives."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, header_bytes if rng.random() < 0.5 else len(out)))
        kind = rng.integers(0, 5)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at : at + 8] = rng.bytes(8)
        elif kind == 2:
            del out[at : at + int(rng.integers(1, 64))]
        elif kind == 3:
            out[at:at] = rng.bytes(int(rng.integers(1, 64)))
        else:
            out[at : at + 4] = b"\xff\xff\xff\xff"
        if len(out) < 16:
            break
    return bytes(out)


def _conforms(p: Parameters, polys: np.ndarray, level: int) -> bool:
    q = np.array(p.moduli[: level + 1], np.uint64)[:, None]
    return polys.shape == (2, level + 1, p.degree) and bool((polys < q).all())


def test_ten_thousand_fuzzed_ciphertexts() -> None:
    """Every mutant is refused with FormatError, or is conformant: in range, of the announced level, scale and parameters."""
    p = small_parameters()
    data = wire.dump_ciphertext(p, random_ciphertext(p, 0, RNG))
    header_bytes = 8 + struct.unpack_from("<Q", data)[0]
    rng, refused = np.random.default_rng(11), 0
    for _ in range(10_000):
        mutant = _mutate(data, rng, header_bytes)
        try:
            loaded = wire.load_ciphertext(mutant, p, 0, SCALE)
        except FormatError:
            refused += 1
        else:
            assert _conforms(p, loaded.polys, 0) and loaded.scale == SCALE
    assert refused > 5_000


def test_several_ciphertexts_travel_under_their_names() -> None:
    p = small_parameters()
    fresh, result = random_ciphertext(p, 1, RNG), random_ciphertext(p, 0, RNG)
    polys = random_residues(p, (2,), p.data_rows(2), RNG)
    sent = {"x.0": fresh, "x.1": result, 'a "name" of.0.1': Ciphertext(polys, 2, SCALE)}
    expected = {name: (c.level, c.scale) for name, c in sent.items()}
    data = wire.dump_ciphertexts(p, sent)
    assert len(data) <= wire.ciphertexts_limit(p, expected)
    loaded = wire.load_ciphertexts(data, p, expected)
    assert list(loaded) == list(sent) and [c.level for c in loaded.values()] == [1, 0, 2]
    assert np.array_equal(loaded['a "name" of.0.1'].polys, polys)
    assert np.array_equal(loaded["x.0"].polys[0], fresh.b)
    for wrong, message in (
        (expected | {"x.0": (0, SCALE)}, "level 0"),
        (expected | {"x.0": (1, 2 * SCALE)}, "scale"),
        (expected | {"x.2": (1, SCALE)}, "'x.2' is missing"),
        ({k: v for k, v in expected.items() if k != "x.1"}, "no 'x.1'"),
    ):
        with pytest.raises(FormatError, match=message):
            wire.load_ciphertexts(data, p, wrong)
    # One alone is an ordinary ciphertext.
    assert wire.load_ciphertext(wire.dump_ciphertexts(p, {"x": fresh}), p, 1, SCALE).level == 1
    assert wire.load_ciphertexts(wire.dump_ciphertext(p, fresh), p, {"x": (1, SCALE)})["x"].level == 1


def test_fuzzed_sets_of_ciphertexts() -> None:
    p = small_parameters()
    sent = {name: random_ciphertext(p, 0, RNG) for name in ("x.0", "x.1")}
    expected = dict.fromkeys(sent, (0, SCALE))
    data = wire.dump_ciphertexts(p, sent)
    header_bytes = 8 + struct.unpack_from("<Q", data)[0]
    rng, refused = np.random.default_rng(13), 0
    for _ in range(5_000):
        mutant = _mutate(data, rng, header_bytes)
        try:
            loaded = wire.load_ciphertexts(mutant, p, expected)
        except FormatError:
            refused += 1
        else:
            assert list(loaded) == list(sent)
            assert all(_conforms(p, c.polys, 0) and c.scale == SCALE for c in loaded.values())
    assert refused > 2_500


def test_ten_thousand_fuzzed_key_files(tmp_path: Path) -> None:
    p = small_parameters()
    needs = KeyNeeds(0, {1: 0})
    source = tmp_path / "keys"
    wire_keys.dump_keys(source, random_keys(p, needs, RNG))
    data = source.read_bytes()
    header_bytes = 8 + struct.unpack_from("<Q", data)[0]
    rng, refused = np.random.default_rng(12), 0
    names = wire_keys.key_names(p, needs)
    q = np.array([p.moduli[r] for r in p.extended_rows(0)], np.uint64)[:, None]
    for _ in range(10_000):
        source.write_bytes(_mutate(data, rng, header_bytes))
        try:
            file = wire_keys.KeyFile(source, p, needs)
            keys = [file.read(name) for name in names]
        except FormatError:
            refused += 1
        else:
            assert all(key.shape == (1, 2, 2, p.degree) and (key < q).all() for key in keys)
    assert refused > 5_000


def test_keys_for_another_model_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    p, needs = model.bundle.checked_parameters(), model.bundle.key_needs()
    wire_keys.dump_keys(tmp_path / "keys", random_keys(p, KeyNeeds(1, {1: 2}), RNG))
    with pytest.raises(FormatError, match="this model's keys"):
        wire_keys.KeyFile(tmp_path / "keys", p, needs)
