"""Security of ring-LWE parameters: the largest modulus per ring degree.

Source: Bossuat et al., "Security Guidelines for Implementing Homomorphic Encryption", IACR ePrint 2024/463, table 5.2
(classical attacks, ternary secret, error standard deviation 3.19). Special primes count: keys live modulo Q*P.
"""

from __future__ import annotations

from ckks.errors import SecurityError

SOURCE = "IACR ePrint 2024/463, table 5.2 (ternary secret, classical)"
REQUIRED_BITS = 128

MAX_LOG_QP: dict[int, dict[int, int]] = {
    128: {12: 106, 13: 214, 14: 430, 15: 868, 16: 1747},
    192: {12: 73, 13: 147, 14: 297, 15: 597, 16: 1199},
    256: {12: 56, 13: 114, 14: 230, 15: 462, 16: 929},
}


def max_log_qp(degree: int, bits: int = REQUIRED_BITS) -> int:
    """Largest log2(Q*P) at ring degree `degree` (2^12..2^16) for `bits` of security; 0 if the table has no such row."""
    return MAX_LOG_QP.get(bits, {}).get(degree.bit_length() - 1, 0) if degree & (degree - 1) == 0 else 0


def security_bits(degree: int, qp: int) -> int:
    """The strongest table row (256, 192, 128) that the exact modulus `qp` = Q*P meets at `degree`; 0 if none."""
    return max((bits for bits in MAX_LOG_QP if 0 < qp <= 1 << max_log_qp(degree, bits)), default=0)


def require(degree: int, qp: int, bits: int = REQUIRED_BITS) -> None:
    """Raise SecurityError unless the modulus `qp` = Q*P at `degree` reaches `bits` of security."""
    limit = max_log_qp(degree, bits)
    if limit == 0 or qp > 1 << limit:
        raise SecurityError(
            f"parameters are below {bits}-bit security: N={degree} allows log2(Q*P) <= {limit}, "
            f"got {qp.bit_length()} bits; use a larger N or fewer and smaller primes ({SOURCE})"
        )
