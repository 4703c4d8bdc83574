"""Parameters of an RNS-CKKS instance: ring degree, prime chain, key-switching digits. Immutable, checked once, never insecure."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ckks import security
from ckks.errors import ParameterError
from ckks.primes import MAX_PRIME_BITS, is_prime

MIN_LOG_DEGREE, MAX_LOG_DEGREE = 12, 16
MIN_PRIME_BITS = 20
MAX_LIMBS = 64


@dataclass(frozen=True)
class Parameters:
    """A checked parameter set.

    degree: N, a power of two, 2^12..2^16; a plaintext has N/2 slots.
    data_primes: q_0..q_L, the level of a ciphertext is the index of its last data limb.
    special_primes: p_0..p_{K-1}, used in key switching only.
    digit_limbs: alpha, data limbs per key-switching digit.

    Every prime is 1 mod 2N and at most 60 bits, all are distinct, and the product P of the special primes is at least half of every
    digit's product (else key-switching noise is not divided away: Han and Ki 2020, section 3). log2(Q*P) respects the 128-bit
    row of the security table. Raises ParameterError or SecurityError.
    """

    degree: int
    data_primes: tuple[int, ...]
    special_primes: tuple[int, ...]
    digit_limbs: int = 1

    def __post_init__(self) -> None:
        n, moduli = self.degree, self.data_primes + self.special_primes
        if n & (n - 1) or not 1 << MIN_LOG_DEGREE <= n <= 1 << MAX_LOG_DEGREE:
            raise ParameterError(f"ring degree must be a power of two from 2^12 to 2^16, got {n}")
        if not self.data_primes or not self.special_primes or len(moduli) > MAX_LIMBS:
            raise ParameterError(
                f"need at least one data and one special prime and at most {MAX_LIMBS} in all"
            )
        for q in moduli:
            if (
                q.bit_length() < MIN_PRIME_BITS
                or q.bit_length() > MAX_PRIME_BITS
                or q % (2 * n) != 1
                or not is_prime(q)
            ):
                raise ParameterError(f"{q} is not a prime of 20 to 60 bits that is 1 mod {2 * n}")
        if len(set(moduli)) != len(moduli):
            raise ParameterError("the primes of a parameter set must be distinct")
        if not 1 <= self.digit_limbs <= len(self.data_primes):
            raise ParameterError(
                f"digit size must be 1..{len(self.data_primes)} limbs, got {self.digit_limbs}"
            )
        security.require(n, math.prod(moduli))
        for start, stop in self.digits(self.max_level):
            if math.prod(self.data_primes[start:stop]) > 2 * self.special_product:
                raise ParameterError(
                    f"the special primes are too small for the key-switching digit of limbs {start}..{stop - 1}; "
                    "add a special prime or make digits smaller"
                )

    @property
    def slots(self) -> int:
        """Complex slots of a plaintext: N/2."""
        return self.degree // 2

    @property
    def max_level(self) -> int:
        """L, the level of a fresh ciphertext."""
        return len(self.data_primes) - 1

    @cached_property
    def moduli(self) -> tuple[int, ...]:
        """All primes, data then special. A `row` is an index into this tuple."""
        return self.data_primes + self.special_primes

    @cached_property
    def special_product(self) -> int:
        """P, the product of the special primes."""
        return math.prod(self.special_primes)

    @cached_property
    def log_qp(self) -> float:
        """log2(Q*P), the figure that security is judged by."""
        return math.log2(math.prod(self.moduli))

    @cached_property
    def security_bits(self) -> int:
        """The strongest row of the security table that is met: 128, 192 or 256."""
        return security.security_bits(self.degree, math.prod(self.moduli))

    def data_rows(self, level: int) -> tuple[int, ...]:
        """Rows of a polynomial modulo Q at `level`: 0..level."""
        return tuple(range(level + 1))

    @cached_property
    def special_rows(self) -> tuple[int, ...]:
        """Rows of the special primes."""
        return tuple(range(len(self.data_primes), len(self.moduli)))

    def extended_rows(self, level: int) -> tuple[int, ...]:
        """Rows of a polynomial modulo Q*P at `level`: 0..level, then the special primes."""
        return self.data_rows(level) + self.special_rows

    def digits(self, level: int) -> tuple[tuple[int, int], ...]:
        """Key-switching digits at `level` as half-open ranges of data limbs; the last may be short."""
        return tuple((i, min(i + self.digit_limbs, level + 1)) for i in range(0, level + 1, self.digit_limbs))

    def galois_element(self, steps: int) -> int:
        """The Galois element 3^steps mod 2N of a rotation to the left by `steps` slots (any sign)."""
        return pow(3, steps % self.slots, 2 * self.degree)

    def to_json(self) -> dict[str, Any]:
        """The canonical JSON form, which `digest` is taken over."""
        return {
            "degree": self.degree,
            "data_primes": list(self.data_primes),
            "special_primes": list(self.special_primes),
            "digit_limbs": self.digit_limbs,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: the name of this set on the wire."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @staticmethod
    def from_json(data: object) -> Parameters:
        """Parameters from parsed JSON of unknown origin; checks types, then everything else. Raises ParameterError."""
        if not isinstance(data, dict) or set(data) != {
            "degree",
            "data_primes",
            "special_primes",
            "digit_limbs",
        }:
            raise ParameterError(
                "parameters must be an object of degree, data_primes, special_primes and digit_limbs"
            )
        lists = [data["data_primes"], data["special_primes"]]
        if any(not isinstance(x, list) or len(x) > MAX_LIMBS for x in lists):
            raise ParameterError(f"prime lists must hold at most {MAX_LIMBS} integers")
        numbers = [data["degree"], data["digit_limbs"], *lists[0], *lists[1]]
        if any(type(x) is not int or not 0 < x < 1 << 64 for x in numbers):
            raise ParameterError("parameters must be positive integers below 2^64")
        return Parameters(data["degree"], tuple(lists[0]), tuple(lists[1]), data["digit_limbs"])

    def __str__(self) -> str:
        """A name made of the content, as in n_16384_logq_48_7x36_logp_2x37_digit_2."""
        parts = [f"n_{self.degree}"]
        for name, primes in (("q", self.data_primes), ("p", self.special_primes)):
            bits = [round(math.log2(q)) for q in primes]
            runs: list[list[int]] = []
            for b in bits:
                if runs and runs[-1][0] == b:
                    runs[-1][1] += 1
                else:
                    runs.append([b, 1])
            parts.append(f"log{name}_" + "_".join(f"{k}x{b}" if k > 1 else str(b) for b, k in runs))
        return "_".join(parts) + f"_digit_{self.digit_limbs}"
