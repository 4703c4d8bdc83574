"""Below 128 bits, compiler, client and server refuse, each by its own check."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import small_parameters, tiny_model

from ckks.bundle import Bundle
from ckks.errors import FormatError, SecurityError
from ckks.modelfile import save_model
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.security import security_bits
from compiler.parameters import Modulus, digit_choices, fits
from he_serve.registry import load_registry
from keys import SecretKey

LIMITS = {
    4096: 106,
    8192: 214,
    16384: 430,
    32768: 868,
    65536: 1747,
}  # IACR ePrint 2024/463, table 5.2, typed anew


def _weakened() -> dict[str, Any]:
    """tiny's parameters with one more prime: well formed, used nowhere, and beyond what N=4096 allows."""
    p = small_parameters()
    more = ntt_primes(p.degree, 30, 1, p.moduli)
    return p.to_json() | {"data_primes": [*p.data_primes, *more]}


def test_server_refuses_a_weak_model(tmp_path: Path) -> None:
    save_model(tmp_path / "tiny.hem", tiny_model())
    assert set(load_registry(tmp_path)) == {"tiny"}
    with zipfile.ZipFile(tmp_path / "tiny.hem") as archive:
        members = {i: archive.read(i) for i in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "tiny.hem", "w", zipfile.ZIP_STORED) as archive:
        for info, content in members.items():
            if info.filename == "manifest.json":
                content = json.dumps(json.loads(content) | {"parameters": _weakened()}, indent=1).encode()
            archive.writestr(info, content)
    with pytest.raises(FormatError, match="128-bit"):
        load_registry(tmp_path)


def test_client_refuses_a_weak_bundle_and_makes_no_key() -> None:
    """The same over HTTP, from a server that lies: tests/test_client_checks.py."""
    weak = json.loads(tiny_model().bundle.to_bytes()) | {"parameters": _weakened()}
    with pytest.raises(FormatError, match="128-bit"):
        Bundle.from_bytes(json.dumps(weak).encode())
    with pytest.raises(SecurityError):
        SecretKey.generate(Parameters.from_json(_weakened()))


@given(st.sampled_from(sorted(LIMITS)), st.integers(26, 50), st.integers(26, 60), st.integers(0, 30))
def test_compiler_offers_secure_parameters_only(degree: int, scale: int, base: int, levels: int) -> None:
    modulus = Modulus(scale, max(scale, base), levels)
    offered = digit_choices(degree, modulus)
    for p in offered:
        assert math.prod(p.moduli) <= 1 << LIMITS[degree]
        assert security_bits(p.degree, math.prod(p.moduli)) >= 128
    if modulus.bits + modulus.base_bits > LIMITS[degree]:
        assert not offered
        assert not fits(degree, modulus)
