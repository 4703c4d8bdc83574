"""Secret keys at rest: what is written, who may read it, and that no damage goes unseen."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seal_side import encrypt
from toy import make_parameters

from ckks.errors import KeyFileError
from keys import SecretKey, load_secret_key, save_secret_key, storage

KEY = SecretKey.generate(make_parameters(4096, (36, 30), (37,)))
PASSPHRASE = "correct horse"


@pytest.fixture(scope="module", autouse=True)
def quick_derivation() -> Iterator[None]:
    """Scrypt takes half a second a call; the tests marked by `real_derivation` use it, all others a hash."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            storage, "_derive", lambda passphrase, salt: hashlib.sha256(salt + passphrase.encode()).digest()
        )
        yield


@pytest.fixture
def real_derivation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_derive", ORIGINAL_DERIVE)


ORIGINAL_DERIVE = storage._derive


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, bytes]:
    """A valid file by the passphrase that opens it."""
    folder = tmp_path_factory.mktemp("keys")
    save_secret_key(folder / "encrypted", KEY, PASSPHRASE)
    save_secret_key(folder / "plain", KEY, None, plain=True)
    return {PASSPHRASE: (folder / "encrypted").read_bytes(), None: (folder / "plain").read_bytes()}


def load_bytes(folder: Path, data: bytes, passphrase: str | None) -> SecretKey:
    path = folder / "mutated"
    path.write_bytes(data)
    path.chmod(0o600)
    return load_secret_key(path, passphrase)


def same_key(a: SecretKey, b: SecretKey) -> bool:
    return np.array_equal(a.coefficients(), b.coefficients()) and (a.key_id, a.created, a.parameters) == (
        b.key_id,
        b.created,
        b.parameters,
    )


@pytest.mark.usefixtures("real_derivation")
def test_round_trip_and_wrong_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "key"
    save_secret_key(path, KEY, PASSPHRASE)
    loaded = load_secret_key(path, PASSPHRASE)
    assert same_key(loaded, KEY)
    values = np.linspace(-1, 1, KEY.parameters.slots)
    c = encrypt(KEY, values, 1, 2.0**30)
    assert np.array_equal(loaded.decrypt(c), KEY.decrypt(c))
    for wrong in ("correct hors", "Correct horse", " "):
        with pytest.raises(KeyFileError, match="wrong passphrase"):
            load_secret_key(path, wrong)


@pytest.mark.usefixtures("real_derivation")
def test_the_derivation_is_the_stated_scrypt() -> None:
    wanted = hashlib.scrypt(
        b"pass\xff", salt=b"0123456789abcdef", n=2**17, r=8, p=1, maxmem=1 << 28, dklen=32
    )
    assert storage._derive("pass\udcff", b"0123456789abcdef") == wanted


def test_plain_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "key"
    save_secret_key(path, KEY, None, plain=True)
    assert same_key(load_secret_key(path, None), KEY)


@pytest.mark.parametrize("plain", [True, False])
def test_mode_is_0600_whatever_the_umask_and_nothing_else_is_left(tmp_path: Path, plain: bool) -> None:
    before = os.umask(0)
    try:
        save_secret_key(tmp_path / "key", KEY, None if plain else PASSPHRASE, plain=plain)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o601])
def test_a_plain_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    save_secret_key(path, KEY, None, plain=True)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_secret_key(path, None)


def secret_forms() -> list[bytes]:
    """Pieces of the secret in every form it has in memory: coefficients, residues of both domains."""
    coefficients = KEY.coefficients()
    return [
        coefficients[:32].tobytes(),
        coefficients[-32:].tobytes(),
        KEY._ntt[0, :4].tobytes(),
        KEY._ntt[-1, -4:].tobytes(),
    ]


def test_an_encrypted_file_holds_no_secret_bytes(files: dict[str | None, bytes]) -> None:
    sealed, plain = files[PASSPHRASE], files[None]
    assert not any(form in sealed for form in secret_forms())
    assert secret_forms()[0] in plain  # the check can fail
    assert (
        len(sealed) > KEY.parameters.degree
    )  # and no compression could hide it: the body is as long as the key
    body = np.frombuffer(sealed[-KEY.parameters.degree :], np.uint8)
    assert np.abs(np.bincount(body, minlength=256) - body.size / 256).max() < 8 * np.sqrt(body.size / 256)


def test_two_files_of_one_key_share_neither_salt_nor_nonce(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_secret_key(tmp_path / name, KEY, PASSPHRASE)
    headers = [storage._parse_header((tmp_path / n).read_bytes(), tmp_path)[0] for n in ("a", "b")]
    assert headers[0].salt != headers[1].salt and headers[0].nonce != headers[1].nonce


def test_no_temporary_file_ever_holds_the_bare_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte string that storage writes, and where."""
    written: list[tuple[Path, bytes]] = []
    write = storage._write_new

    def record(path: Path, data: bytes) -> None:
        written.append((path, data))
        write(path, data)

    monkeypatch.setattr(storage, "_write_new", record)
    save_secret_key(tmp_path / "sealed", KEY, PASSPHRASE)
    save_secret_key(tmp_path / "plain", KEY, None, plain=True)
    assert [p == tmp_path / "plain" for p, _ in written] == [False, True]
    assert not any(form in written[0][1] for form in secret_forms())


@pytest.mark.parametrize(("passphrase", "plain"), [(None, False), ("x", True), ("", False), ("", True)])
def test_the_kind_of_protection_must_be_chosen(tmp_path: Path, passphrase: str | None, plain: bool) -> None:
    with pytest.raises(KeyFileError):
        save_secret_key(tmp_path / "key", KEY, passphrase, plain=plain)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("plain", [True, False])
def test_an_existing_file_is_never_replaced(tmp_path: Path, plain: bool) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"another key")
    with pytest.raises(KeyFileError, match="exists already"):
        save_secret_key(path, KEY, None if plain else PASSPHRASE, plain=plain)
    assert path.read_bytes() == b"another key" and [p.name for p in tmp_path.iterdir()] == ["key"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    for passphrase in (PASSPHRASE, None):
        with pytest.raises(KeyFileError, match="No space left"):
            save_secret_key(tmp_path / "key", KEY, passphrase, plain=passphrase is None)
    assert not list(tmp_path.iterdir())


def test_unusable_paths_are_named(tmp_path: Path) -> None:
    for action in (lambda p: save_secret_key(p, KEY, PASSPHRASE), lambda p: load_secret_key(p, PASSPHRASE)):
        with pytest.raises(KeyFileError, match="nowhere"):
            action(tmp_path / "nowhere" / "key")
    with pytest.raises(KeyFileError):
        load_secret_key(tmp_path, PASSPHRASE)
    (tmp_path / "large").write_bytes(bytes(2 << 20))
    with pytest.raises(KeyFileError, match="larger"):
        load_secret_key(tmp_path / "large", PASSPHRASE)


def test_the_passphrase_must_suit_the_file(tmp_path: Path, files: dict[str | None, bytes]) -> None:
    with pytest.raises(KeyFileError, match="give its passphrase"):
        load_bytes(tmp_path, files[PASSPHRASE], None)
    with pytest.raises(KeyFileError, match="takes no passphrase"):
        load_bytes(tmp_path, files[None], PASSPHRASE)


@pytest.mark.parametrize("passphrase", [PASSPHRASE, None])
def test_a_flipped_bit_anywhere_is_refused(
    tmp_path: Path, files: dict[str | None, bytes], passphrase: str | None
) -> None:
    data = files[passphrase]
    bits = np.random.default_rng(3).integers(0, 8, len(data))
    for position, bit in enumerate(bits):
        mutated = bytearray(data)
        mutated[position] ^= 1 << bit
        with pytest.raises(KeyFileError):
            load_bytes(tmp_path, bytes(mutated), passphrase)


@pytest.mark.parametrize("passphrase", [PASSPHRASE, None])
@settings(max_examples=200, deadline=None)
@given(edit=st.tuples(st.integers(0, 6000), st.integers(0, 6000), st.binary(max_size=200)))
def test_no_edit_of_a_file_is_accepted(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str | None, bytes],
    passphrase: str | None,
    edit: tuple[int, int, bytes],
) -> None:
    """Cut, replace or insert at any place: refused with our error, unless nothing changed."""
    data, (start, removed, inserted) = files[passphrase], edit
    mutated = data[:start] + inserted + data[start + removed :]
    folder = tmp_path_factory.getbasetemp()
    if mutated == data:
        assert same_key(load_bytes(folder, mutated, passphrase), KEY)
    else:
        with pytest.raises(KeyFileError):
            load_bytes(folder, mutated, passphrase)


@settings(max_examples=300, deadline=None)
@given(
    head=st.booleans(),
    size=st.integers(0, 400),
    tail=st.binary(max_size=300),
    passphrase=st.sampled_from([None, "p"]),
)
def test_arbitrary_bytes_are_refused(
    tmp_path_factory: pytest.TempPathFactory, head: bool, size: int, tail: bytes, passphrase: str | None
) -> None:
    data = (storage._MAGIC + size.to_bytes(4, "little") if head else b"") + tail
    with pytest.raises(KeyFileError):
        load_bytes(tmp_path_factory.getbasetemp(), data, passphrase)


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {}},
        {"parameters": KEY.parameters.to_json() | {"degree": 8192}},
        {"parameters": make_parameters(8192, (36,), (37,)).to_json()},
        {"version": 2},
        {"created": "yesterday"},
        {"key_id": "../../etc/passwd"},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_well_sealed_file_with_wrong_content_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """Authentic by its checksum, so that the checks behind it are the ones at work."""
    header = {
        "version": 1,
        "protection": "plain",
        "parameters": KEY.parameters.to_json(),
        "key_id": KEY.key_id,
    }
    header |= {"created": KEY.created, "salt": "", "nonce": ""}

    def sealed(content: dict[str, object]) -> bytes:
        text = storage.json.dumps(content).encode()
        start = storage._MAGIC + len(text).to_bytes(4, "little") + text + KEY.coefficients().tobytes()
        return start + hashlib.sha256(start).digest()

    assert same_key(load_bytes(tmp_path, sealed(header), None), KEY)
    with pytest.raises(KeyFileError):
        load_bytes(tmp_path, sealed(header | change), None)


@pytest.mark.usefixtures("real_derivation")
def test_another_process_opens_the_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    save_secret_key(path, KEY, PASSPHRASE)
    code = f"from keys import load_secret_key; print(load_secret_key({str(path)!r}, {PASSPHRASE!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert result.stdout.strip() == repr(KEY)
