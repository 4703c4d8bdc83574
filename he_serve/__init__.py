"""he-serve: an inference server for encrypted images.

Importing this package loads nothing heavy; `he_serve.Client` is imported on first use, because it brings the secret-key side with it and
the server process must never load that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from he_serve.client import Client as Client
    from he_serve.prediction import Prediction as Prediction

__version__ = "0.1.0"
__all__ = ["Client", "Prediction", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from he_serve.client import Client

        return Client
    if name == "Prediction":
        from he_serve.prediction import Prediction

        return Prediction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
