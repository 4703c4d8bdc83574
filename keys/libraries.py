"""Which library holds a secret key in memory and draws what is random under it. Key files and the wire do not depend on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from ckks.errors import InputError
from ckks.parameters import Parameters
from ckks.types import KeyNeeds
from keys import seal

if TYPE_CHECKING:
    from keys import openfhe

Library = Literal["seal", "openfhe"]
AnySecretKey: TypeAlias = "seal.SecretKey | openfhe.SecretKey"


def secret_key_type(library: Library) -> type[seal.SecretKey] | type[openfhe.SecretKey]:
    """The class of secret keys of a library. Raises InputError where it is not installed."""
    if library == "seal":
        return seal.SecretKey
    try:
        from keys import openfhe
    except ImportError:
        raise InputError(
            "keys of OpenFHE need Python 3.10 and its package: pip install he-serve[openfhe]"
        ) from None
    return openfhe.SecretKey


def own_parameters(library: Library, model: Parameters, needs: KeyNeeds) -> Parameters:
    """The primes that a library chooses for a model of these sizes and keys. Raises InputError where it chooses none, or no secure ones."""
    secret_key_type(library)
    if library == "seal":
        raise InputError(
            "SEAL takes the primes that it is given; only OpenFHE's keys can have primes of their own"
        )
    from keys import openfhe

    return openfhe.own_parameters(model, needs)
