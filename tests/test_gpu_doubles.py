"""The CUDA arithmetic on doubles at the edges of what it says of itself (ckks/kernels/doubles.cuh): exact, and within its bounds."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from cuda_shim import Shim
from test_backends import assert_same, primes_near

from bench._stand_in import StandIn
from ckks import modular
from ckks.backends.device import Device, kernel_source
from ckks.backends.gpu_passes import Passes
from ckks.backends.gpu_tables import factors, prime_table

# Primes next to 2^49, next to 2^48 on both sides (the largest and smallest of their bits), and the smallest there are.
PRIMES = (*primes_near(4096, 49, 1), *primes_near(4096, 48, 2), *primes_near(4096, 20, 1))
TILE = 2048
KERNELS = """
template <class Field>
__device__ void round_in(const Field& f, Tile& tile, const Factor* twiddles, unsigned kind) {
    if (kind == 0) forward_round<3>(f, tile, f.constants(twiddles), 256, 2);
    if (kind == 1) forward_round<2>(f, tile, f.constants(twiddles), 512, 1);
    if (kind == 2) inverse_round<3>(f, tile, f.constants(twiddles), 1024, 0);
    if (kind == 3) inverse_round<2>(f, tile, f.constants(twiddles), 1024, 0);
}
extern "C" __global__ void __launch_bounds__(256)
round_of(const word* x, word* out, const Factor* twiddles, const Prime* primes, unsigned kind, unsigned doubles) {
    __shared__ Tile tile;
    for (unsigned e = threadIdx.x; e < kTile; e += kThreads) tile[e] = x[e];
    __syncthreads();
    if (doubles)
        round_in(Doubles(primes[0]), tile, twiddles, kind);
    else
        round_in(Whole(primes[0]), tile, twiddles, kind);
    __syncthreads();
    for (unsigned e = threadIdx.x; e < kTile; e += kThreads) out[e] = tile[e];
}
extern "C" __global__ void __launch_bounds__(256)
products_of(const word* a, const word* w, word* out, const Prime* primes) {
    const Doubles f(primes[0]);
    for (unsigned k = threadIdx.x; k < kTile; k += kThreads) {
        out[k] = f.written(f.multiply(f.read(a[k]), f.read(w[k])));
        out[kTile + k] = f.written(f.settled(f.read(a[k])));
    }
}
extern "C" __global__ void __launch_bounds__(256)
sums_of(const word* x, const word* y, word* out, const Prime* primes, unsigned count) {
    const Doubles f(primes[0]);
    auto s = f.sum();
    for (unsigned i = 0; i < count; ++i) {
        if (i && i % f.kProducts == 0) f.fold(s);
        f.add(s, f.enter(x[i]), f.enter(y[i]));
    }
    f.add(s, f.enter(63), f.enter(y[0]));
    out[threadIdx.x] = f.residue(f.reduced(s));
}
"""
# Kinds of round_in, and the bounds of values between rounds, in q.
ROUNDS = ((0, 2.6), (1, 2.6), (2, 1.6), (3, 1.6))


@lru_cache(maxsize=1)
def device() -> Device:
    files = ("modular.cuh", "doubles.cuh", "ntt.cuh")
    return Device(StandIn(Shim("shuffled")), "stand-in", 1 << 20, kernel_source(True, files) + KERNELS)


def run(on: Device, kernel: str, shape: tuple[int, ...], before: list[Any], after: list[Any]) -> np.ndarray:
    """A kernel whose arguments are these with the result between them."""
    out = on.empty(shape)
    sent = [[a if isinstance(a, int) else on.upload(a) for a in part] for part in (before, after)]
    on.launch(kernel, (1,), (*sent[0], out, *sent[1]))
    result: np.ndarray = on.download(out)
    return result


def exact(doubles: np.ndarray) -> np.ndarray:
    """The integers that these are, as Python's."""
    numbers = doubles.view(np.float64)
    assert (numbers == np.rint(numbers)).all()
    return np.array([int(x) for x in numbers], dtype=object)


def within(q: int, bound: float, count: int, seed: int) -> np.ndarray:
    """Integers of size up to bound * q as doubles: most at its ends."""
    draw = np.random.default_rng(seed)
    limit = math.floor(bound * q)
    values = limit - draw.integers(0, 3, count)
    values[draw.random(count) < 0.2] = draw.integers(0, limit)
    return (values * draw.choice([-1, 1], count)).astype(np.float64)


def check_products(on: Device, q: int, bound: float) -> None:
    """Of the largest values and constants: congruent, and in 1/2 + 3A/32; what is settled, in 1/2."""
    a, w = within(q, bound, TILE, 1), within(q, 0.5, TILE, 2)
    sent = [a.view(np.uint64), w.view(np.uint64)]
    product, settled = map(exact, run(on, "products_of", (2, TILE), sent, [prime_table([q])]))
    assert all((x * y - z) % q == 0 for x, y, z in zip(exact(a), exact(w), product, strict=True))
    assert all((x - z) % q == 0 for x, z in zip(exact(a), settled, strict=True))
    assert max(abs(product)) <= (0.5 + 3 * bound / 32) * q
    assert max(abs(settled)) <= q // 2 + 1


def check_sums(on: Device, q: int, count: int) -> None:
    """Products of the largest there are, eight at a time and an overflow."""
    x = np.full(count, PRIMES[0] - 1, dtype=np.uint64)
    for y in (q - 1, q // 2, 1):
        expected = (count * (PRIMES[0] - 1) + 63) * y % q
        sent = [x, np.full(count, y, dtype=np.uint64)]
        got = run(on, "sums_of", (256,), sent, [prime_table([q]), count])
        assert set(got.tolist()) == {expected}


def check_rounds(on: Device, q: int, kind: int, bound: float) -> None:
    """From anything within the bound of the rounds to what is congruent to the integers' results, within it again."""
    for seed in range(3):
        x, w = within(q, bound, TILE, seed), within(q, 0.5, TILE, seed + 10)
        tables = [factors((exact(w) % q).astype(np.uint64), q, doubles) for doubles in (False, True)]
        residues = (exact(x) % q).astype(np.uint64)
        values = [residues, x.view(np.uint64)]
        expected, got = (
            run(on, "round_of", (TILE,), [v], [table, prime_table([q]), kind, doubles])
            for doubles, (v, table) in enumerate(zip(values, tables, strict=True))
        )
        assert all((int(a) - b) % q == 0 for a, b in zip(expected, exact(got), strict=True))
        assert max(abs(exact(got))) <= bound * q


@pytest.mark.parametrize("q", PRIMES)
@pytest.mark.parametrize("bound", [1.0, 6.4, 8.0])
def test_products(q: int, bound: float) -> None:
    check_products(device(), q, bound)


@pytest.mark.parametrize("q", PRIMES)
@pytest.mark.parametrize("count", [1, 8, 64])
def test_sums(q: int, count: int) -> None:
    check_sums(device(), q, count)


@pytest.mark.parametrize("q", PRIMES)
@pytest.mark.parametrize(("kind", "bound"), ROUNDS)
def test_rounds(q: int, kind: int, bound: float) -> None:
    check_rounds(device(), q, kind, bound)


def test_conversion_of_as_many_sources_as_a_sum_takes() -> None:
    """Eight, nine and seventeen primes next to 2^49 and the largest sum of their fractions, to primes of 49 and of 60 bits."""
    degree = 4096
    for count in (8, 9, 17):
        sources = primes_near(degree, 49, count)
        targets = (
            *primes_near(degree, 30, 1),
            *primes_near(degree, 60, 1),
            *primes_near(degree, 49, count + 1)[:1],
        )
        passes = Passes(
            Device(StandIn(Shim("reverse")), "stand-in", 1 << 20, doubles=True), degree, (*sources, *targets)
        )
        on, product = passes._device, math.prod(sources)
        # (D/q_i) * (q_i - 1) summed over all i, less than D/2 away from a multiple of D on either side; and the ends of the range.
        largest = sum(product // q * (q - 1) for q in sources) % product
        values = [largest, product - largest, product // 2, product // 2 + 1, product - 1, 1]
        residues = np.array([[v % q for v in values] for q in sources], dtype=np.uint64)
        x = np.stack([np.resize(row, degree) for row in residues])
        values = [v - product if v > product // 2 else v for v in values]
        rows, group = tuple(range(count + 3)), tuple(range(count))
        forward = np.stack([modular.forward_ntt(row, q) for row, q in zip(x, sources, strict=True)])
        got = on.download(passes.digits(on.upload(forward), (group,), rows))
        for t, q in enumerate(targets):
            expected = np.resize(np.array([v % q for v in values], dtype=np.uint64), degree)
            assert_same(got[0, count + t], modular.forward_ntt(expected, q))


def test_constants_on_doubles() -> None:
    """Balanced, one behind the other; primes of 50 bits and more keep Shoup's pairs."""
    q = PRIMES[0]
    values = np.array([0, 1, q // 2, q // 2 + 1, q - 1], dtype=np.uint64)
    expected = [0, 1, q // 2, -(q // 2), -1]
    assert factors(values, q, True).ravel()[:5].view(np.float64).tolist() == expected
    assert_same(factors(values, q, False)[:, 0], values)
    large = primes_near(4096, 50, 1)[0]
    assert large < 2**50
    assert_same(factors(values, large, True), factors(values, large, False))
