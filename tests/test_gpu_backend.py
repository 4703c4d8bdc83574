"""The GPU backend bit for bit against the reference: its kernels on the CPU in three thread orders, and on a device where there is one."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import gpu_checks as checks
import numpy as np
import pytest
from cuda_shim import ORDERS, Shim
from test_backends import SETS, assert_same, parameters, primes_near, residues

from bench._stand_in import StandIn
from ckks import modular
from ckks.backends import Backend, gpu_passes, make_backend
from ckks.backends.device import Device
from ckks.backends.device_cache import DeviceCache
from ckks.backends.gpu import GpuBackend, open_device
from ckks.backends.gpu_passes import Passes
from ckks.errors import DeviceError, DeviceMemoryError, EvaluationError
from ckks.packed import Packed, pack
from ckks.types import KeySwitchKey

SHIM = Shim()
INTEGERS = tuple(ORDERS)
DOUBLES = tuple(f"{order}, doubles" for order in ORDERS)
GPU = ("gpu", "gpu, doubles")
# Residues packed in 4, 7 and 8 bytes, one source and several, more products than fit a sum; larger rings are for the transforms below.
SMALL = {
    "30_bits": INTEGERS + DOUBLES,
    "60_bits": INTEGERS,
    "30_bits_pairs": (*INTEGERS, "shuffled, doubles"),
    "20_and_49_bits": INTEGERS + DOUBLES,
    "49_bits": DOUBLES,
}
LARGER = {
    "40_and_60_bits": ("shuffled", "shuffled, doubles"),
    "60_bits_triples": ("shuffled",),
    "24_bits_nine_products": ("shuffled", "shuffled, doubles"),
    "32_and_48_bits": ("shuffled", "shuffled, doubles"),
}


@lru_cache(maxsize=2)
def stand_in(doubles: bool) -> Device:
    return Device(StandIn(SHIM), "stand-in", 1 << 30, doubles=doubles)


@lru_cache(maxsize=2)
def gpu(doubles: bool) -> Device:
    """With both arithmetics, whichever suits this GPU."""
    try:
        on = open_device()
    except DeviceError as error:
        pytest.skip(f"NOT RUN ON A GPU: {error}")
    return Device(on.library, on.name, on.cache.budget, doubles=doubles)


def device(kind: str) -> Device:
    """The stand-in with an order of threads, or the GPU of this machine; on integers unless it says otherwise."""
    where, doubles = kind.removesuffix(", doubles"), kind.endswith("doubles")
    if where == "gpu":
        return gpu(doubles)
    SHIM.order = where
    return stand_in(doubles)


@lru_cache(maxsize=16)
def backend(name: str, on: Device) -> GpuBackend:
    return GpuBackend(parameters(name), on)


class Each:
    """Every function on each of these kinds of device in turn, all with the same result."""

    def __init__(self, name: str, kinds: tuple[str, ...]) -> None:
        self._name, self._kinds = name, kinds

    def __getattr__(self, function: str) -> Callable[..., np.ndarray]:
        def call(*arguments: object) -> np.ndarray:
            results = [
                getattr(backend(self._name, device(kind)), function)(*arguments) for kind in self._kinds
            ]
            for kind, result in zip(self._kinds, results, strict=True):
                np.testing.assert_array_equal(result, results[0], err_msg=f"{kind}, {self._kinds[0]}")
            return results[0]

        return call


@pytest.mark.parametrize("kinds", [None, pytest.param(GPU, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", SMALL)
def test_every_function(name: str, kinds: tuple[str, ...] | None) -> None:
    b, p = cast(Backend, Each(name, kinds or SMALL[name])), parameters(name)
    checks.check_transforms(b, p)
    checks.check_element_wise(b, p)
    checks.check_sums(b, p)
    checks.check_matrix(b, p)
    checks.check_key_switching(b, p)
    checks.check_division(b, p)
    checks.check_ties(b, p)


@pytest.mark.parametrize("kinds", [None, pytest.param(GPU, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", LARGER)
def test_wide_digits(name: str, kinds: tuple[str, ...] | None) -> None:
    b, p = cast(Backend, Each(name, kinds or LARGER[name])), parameters(name)
    checks.check_key_switching(b, p, least=p.max_level)
    checks.check_division(b, p, least=p.max_level)
    checks.check_ties(b, p)


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(set(SETS) - {*SMALL, *LARGER}))
def test_the_other_sets_on_a_device(name: str) -> None:
    b, p = cast(Backend, Each(name, GPU)), parameters(name)
    for check in (
        checks.check_transforms,
        checks.check_key_switching,
        checks.check_division,
        checks.check_ties,
    ):
        check(b, p)


@pytest.mark.parametrize("kinds", [INTEGERS + DOUBLES, pytest.param(GPU, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("log_degree", range(12, 18))
def test_transforms_of_every_ring(log_degree: int, kinds: tuple[str, ...]) -> None:
    degree = 1 << log_degree
    moduli = primes_near(degree, 60, 1) + primes_near(degree, 49, 1)
    q = np.array(moduli, dtype=np.uint64)[:, None]
    x = np.random.default_rng(log_degree).integers(0, q, (2, degree), dtype=np.uint64)
    x[:, : degree // 2] = q - np.uint64(1)
    values = np.stack([modular.forward_ntt(row, m) for row, m in zip(x, moduli, strict=True)])
    of = {doubles: Passes(device(kinds[-1 if doubles else 0]), degree, moduli) for doubles in (False, True)}
    for kind in kinds:
        on, passes = device(kind), of[kind.endswith("doubles")]
        assert_same(on.download(passes.forward(on.upload(x), (0, 1))), values)
        assert_same(on.download(passes.inverse(on.upload(values), (0, 1))), x)


def test_stacks_of_more_rows_than_one_axis_of_a_grid_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_passes._counted(65535) == (65535, 1)
    assert gpu_passes._counted(32749 * 2 * 7) == (65498, 7)  # a prime number of members
    monkeypatch.setattr(gpu_passes, "_COUNTED", 5)
    b, p = backend("30_bits", device("forward")), parameters("30_bits")
    checks.check_element_wise(b, p)
    checks.check_division(b, p)
    checks.check_transforms(b, p)


@pytest.mark.parametrize(
    "kind", ["shuffled", "forward, doubles", *(pytest.param(kind, marks=pytest.mark.gpu) for kind in GPU)]
)
@pytest.mark.parametrize("name", ["30_bits_pairs", "60_bits"])
def test_several_ciphertexts_in_one_call(name: str, kind: str) -> None:
    b, p = backend(name, device(kind)), parameters(name)
    checks.check_stacks(b, p)
    rows, x = p.data_rows(1), residues(p, p.data_rows(1), 2, 2)
    for call in (lambda: b.tensor(x, x[0], rows), lambda: b.tensor(x, x[:1], rows)):
        with pytest.raises(EvaluationError, match="stacks of different sizes"):
            call()


def test_results_lie_where_the_first_array_lies() -> None:
    b, p = backend("30_bits", device("forward")), parameters("30_bits")
    data, rows = p.data_rows(1), p.extended_rows(1)
    x, kind = residues(p, data, 2), b.device.library.ndarray
    on = b.upload(x)
    assert (
        isinstance(on, kind)
        and isinstance(b.add(on, on, data), kind)
        and isinstance(b.add(x, on, data), np.ndarray)
    )
    key = KeySwitchKey.from_residues(p, residues(p, rows, len(p.digits(1)), 2), 1)
    switched = b.key_switch(on[1], key, 1, 5, on[:1])
    assert_same(b.download(b.mod_down(switched, 1)), b.mod_down(b.key_switch(x[1], key, 1, 5, x[:1]), 1))
    with pytest.raises(TypeError):
        np.asarray(on)


def test_keys_and_weights_are_sent_once_and_go_with_their_owner() -> None:
    b, p = (
        GpuBackend(parameters("30_bits"), Device(StandIn(SHIM), "stand-in", 1 << 30)),
        parameters("30_bits"),
    )
    rows, cache = p.extended_rows(1), b.device.cache
    digits = b.upload(residues(p, rows, len(p.digits(1))))
    moduli = tuple(p.moduli[r] for r in rows)
    data = pack(residues(p, rows, 2, len(p.digits(1)), 2), moduli).data
    for _ in range(2):  # slices are new objects every time, of the same memory
        b.key_product(digits, KeySwitchKey(Packed(data[0], moduli, p.degree), 1), 1)
        assert cache.nbytes == data[0].nbytes
    b.key_product(digits, KeySwitchKey(Packed(data[1], moduli, p.degree), 1), 1)
    plains, terms = pack(residues(p, rows, 3), moduli), [b.upload(residues(p, rows, 2))]
    for _ in range(2):
        b.multiply_sums(terms, plains, [[(0, i) for i in range(3)]], rows)
        assert cache.nbytes == data.nbytes + plains.data.nbytes
    del data
    gc.collect()
    assert cache.nbytes == plains.data.nbytes


def test_the_cache_stays_within_its_budget() -> None:
    cache, sent = DeviceCache(budget=100 * 8), []
    arrays = [np.zeros(40, dtype=np.uint64) for _ in range(3)] + [np.zeros(200, dtype=np.uint64)]

    def upload(x: np.ndarray) -> np.ndarray:
        sent.append(len(sent))
        return x.copy()

    for i, uploads in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4), (3, 5), (3, 6), (1, 6)):
        cache.get(arrays[i], upload)
        assert len(sent) == uploads, i
        assert cache.nbytes <= cache.budget


def test_short_memory_empties_the_cache_and_then_is_an_error() -> None:
    library = StandIn(SHIM)
    on = Device(library, "stand-in", 1 << 30)
    b, p = GpuBackend(parameters("30_bits"), on), parameters("30_bits")
    rows = p.extended_rows(1)
    digits = on.upload(residues(p, rows, len(p.digits(1))))
    key = KeySwitchKey.from_residues(p, residues(p, rows, len(p.digits(1)), 2), 1)
    expected = b.download(b.key_product(digits, key, 1))
    x = residues(p, rows, 2)
    library.memory = (
        library.used + 2 * x.nbytes - 1
    )  # room for the array, for its result only without the key
    assert on.cache.nbytes
    assert_same(b.add(x, x[0], rows), make_backend(p, "reference").add(x, x[0], rows))
    assert on.cache.nbytes == 0
    assert_same(b.download(b.key_product(digits, key, 1)), expected)
    library.memory = library.used
    with pytest.raises(DeviceMemoryError, match="no room for 0 MB more"):
        b.add(x, x, rows)


def test_bad_arrays_are_refused() -> None:
    b, p = backend("30_bits_pairs", device("forward")), parameters("30_bits_pairs")
    rows, x = p.data_rows(1), residues(p, p.data_rows(1), 2)
    wide, plain = p.extended_rows(p.max_level), pack(x[:1], p.moduli[:2])
    key = KeySwitchKey.from_residues(p, residues(p, p.extended_rows(1), len(p.digits(1)), 2), 1)
    for call in (
        lambda: b.forward(x.astype(np.int64), rows),
        lambda: b.forward(x[:, :, :-1], rows),
        lambda: b.forward(x, (0, 99)),
        lambda: b.add(x[0], x, rows),
        lambda: b.multiply_scalars(x, np.array([p.moduli[0], 0], dtype=np.uint64), rows),
        lambda: b.multiply_sums([x], plain, [], rows),
        lambda: b.multiply_sums([x], plain, [[]], rows),
        lambda: b.multiply_sums([x], plain, [[(1, 0)]], rows),
        lambda: b.multiply_sums([x], plain, [[(0, 1)]], rows),
        lambda: b.multiply_sums([x], pack(x[:1, :, :3], plain.moduli), [[(0, 0)]], rows),
        lambda: b.multiply_sums([x], pack(x[:1], plain.moduli[::-1]), [[(0, 0)]], rows),
        lambda: b.automorphism(x, 2),
        lambda: b.decompose(x[0], 2),
        lambda: b.decompose(x[0], p.max_level + 1),
        lambda: b.rescale(x[:, :1], 0),
        lambda: b.key_switch(residues(p, p.data_rows(p.max_level)), key, p.max_level),
        lambda: b.key_switch(x[0], key, 1, moved=residues(p, wide, 3)),
    ):
        with pytest.raises(EvaluationError):
            call()
