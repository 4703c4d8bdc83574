"""NTT-friendly primes and their roots of unity."""

from __future__ import annotations

from functools import lru_cache

from ckks.errors import ParameterError

MAX_PRIME_BITS = 60  # SEAL's limit for a coefficient modulus, and what the 64-bit kernels are proved for

# The first twelve primes as bases make Miller-Rabin exact below 3.18e23 (Sorenson and Webster 2015).
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


@lru_cache(maxsize=4096)
def is_prime(n: int) -> bool:
    """Exact primality for n < 3.18e23 (deterministic Miller-Rabin)."""
    if n < 2 or any(n % p == 0 for p in _WITNESSES):
        return n in _WITNESSES
    twos = ((n - 1) & (1 - n)).bit_length() - 1
    odd = (n - 1) >> twos
    for base in _WITNESSES:
        x = pow(base, odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def ntt_primes(
    degree: int, bits: int, count: int, exclude: tuple[int, ...] = (), below: bool = False
) -> tuple[int, ...]:
    """The `count` primes q = 1 mod 2*degree nearest to 2^bits from either side, none in `exclude`, nearest first.

    Scales stay near 2^bits when primes do: the drift after a rescale is q / 2^bits. below: only primes less than 2^bits.
    Raises ParameterError when fewer than `count` such primes lie within a factor of two below or above, or beyond 60 bits.
    """
    if bits > MAX_PRIME_BITS:
        raise ParameterError(f"primes have at most {MAX_PRIME_BITS} bits, got {bits}")
    if count == 0:
        return ()
    step, centre = 2 * degree, 1 << bits
    found: list[int] = []
    for k in range(1, centre // (2 * step)):
        for q in (centre + (k - 1) * step + 1, centre - k * step + 1):
            small = q < centre if below else q.bit_length() <= MAX_PRIME_BITS
            if small and q not in exclude and is_prime(q):
                found.append(q)
                if len(found) == count:
                    return tuple(found)
    raise ParameterError(f"fewer than {count} NTT primes near 2^{bits} for N={degree}; use larger primes")


@lru_cache(maxsize=1024)
def smallest_root(degree: int, q: int) -> int:
    """psi: the numerically smallest primitive 2*degree-th root of unity modulo the prime q (SEAL's choice too)."""
    exponent = (q - 1) // (2 * degree)
    root = next(
        r for r in (pow(g, exponent, q) for g in range(2, q)) if pow(r, degree, q) == q - 1
    )  # exists: a non-residue gives one, and half of all g are non-residues
    best, odd_power, square = root, root, root * root % q
    for _ in range(degree - 1):
        odd_power = odd_power * square % q
        best = min(best, odd_power)
    return best
