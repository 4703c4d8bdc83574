"""Noise of each operation, as the standard deviation of one slot's real part.

Average-case analysis in the canonical embedding (Costache et al., "On the precision loss in approximate homomorphic encryption",
SAC 2023, section 3): independent coefficients of variance v give slots of variance N*v, half of it in the real part.
The secret is uniform ternary, so its squared norm is 2N/3; SEAL's error has standard deviation 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ckks.parameters import Parameters

ERROR_STD = 3.2


@dataclass(frozen=True)
class NoiseModel:
    """Standard deviations for one parameter set; divide by the scale to get message units (the methods taking `scale` do)."""

    parameters: Parameters

    def _slots(self, coefficient_variance: float) -> float:
        return math.sqrt(self.parameters.degree / 2 * coefficient_variance)

    def fresh(self, scale: float) -> float:
        """A fresh symmetric ciphertext: the error itself, and the rounding of the encoding."""
        return self._slots(ERROR_STD**2 + 1 / 12) / scale

    def encoding(self, scale: float, period: int) -> float:
        """Rounding an encoded vector of this period to integers.

        Its polynomial has 2*period coefficients besides zeros, and as the vector is real, p(X) = p(1/X) also after
        rounding: the error is real, nothing of it is lost to imaginary parts.
        """
        return math.sqrt(2 * period / 12) / scale

    def rounding(self, scale: float) -> float:
        """Rounding of a division (rescale, mod-down): both polynomials by 1/2, the second times the secret."""
        return self._slots((1 + 2 * self.parameters.degree / 3) / 12) / scale

    def key_switch(self, level: int, scale: float) -> float:
        """The key's error, sum over digits of digit * error / P, before the rounding of mod-down."""
        p = self.parameters
        ratios = (math.prod(p.data_primes[a:b]) / p.special_product for a, b in p.digits(level))
        return self._slots(sum(r * r for r in ratios) / 12 * p.degree * ERROR_STD**2) / scale
