"""What comes of decrypted slots: plausible logits, and the probabilities that may be shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ckks.bundle import OutputSpec
from ckks.errors import InputError, RemoteError
from ckks.parameters import Parameters
from ckks.types import Slots
from he_serve.packing import copies


@dataclass(frozen=True)
class Prediction:
    """label: the likeliest class. probabilities: per label, rounded to the digits that the promised error supports; for a model
    whose output is declared to need no post-processing (a regression), its values in place of probabilities.

    timings, in seconds: encrypt, round_trip (evaluation and queue included), queue, evaluate (both as the server says), decrypt; of the
    whole request, which `images` pictures shared.
    """

    label: str
    probabilities: dict[str, float]
    timings: dict[str, float]
    images: int = 1


@dataclass(frozen=True, eq=False)
class RawPrediction:
    """logits: float64 of the output's shape, with CKKS noise in them: see Client.predict_raw before you show them to anybody.

    sent_bytes, received_bytes: of the request and the answer, all ciphertexts together, which `images` pictures shared.
    """

    logits: Slots
    timings: dict[str, float]
    sent_bytes: int
    received_bytes: int
    images: int = 1

    def rounded(self, output: OutputSpec) -> Prediction:
        """What may be shown: label and probabilities without the noise."""
        values = _POSTS[output.post](self.logits.reshape(-1))
        digits = supported_digits(output.promised_error * (2 if output.post == "none" else 1))
        if output.post == "sigmoid" and len(values) == 1:
            values = np.concatenate([1 - values, values])
        labels = output.labels or [str(i) for i in range(len(values))]
        rounded = {name: round(float(v), digits) for name, v in zip(labels, values, strict=True)}
        return Prediction(labels[int(np.argmax(values))], rounded, self.timings, self.images)


def check_plausible(slots: Slots, output: OutputSpec, parameters: Parameters) -> None:
    """Refuse what no evaluation of the model gives; this finds accidents (a wrong key, a damaged answer), not attacks.

    slots: of all parts of the output, float64 [parts*N/2].
    A message must stay below half the modulus to decrypt right, while a wrong decryption is uniform modulo Q in its coefficients and
    exceeds that bound in about every slot. Copies of the output differ by noise only, and noise is within the promised error.
    A polynomial that stands for an activation soon leaves `largest` behind once a value leaves its interval, which no server can see.
    Raises RemoteError, and InputError for the last.
    """
    found = copies(slots, output.packing)
    bound = math.prod(parameters.data_primes[: output.level + 1]) / (2 * output.scale)
    if not np.isfinite(found).all() or np.abs(found).max() > bound:
        raise RemoteError(
            "the answer does not decrypt to anything plausible; make new keys with `he-serve keys new` and try again"
        )
    if np.abs(found - found[0]).max() > 2 * output.promised_error:
        raise RemoteError(
            "the answer contradicts itself: copies of the output differ by more than the promised error"
        )
    if np.abs(found).max() > output.largest:
        raise InputError(
            f"the answer is larger than the model gives for inputs like those it was calibrated with (up to {output.largest:.3g}), so it "
            "is wrong: an input of this request is unlike them, or scaled otherwise than in training"
        )


def softmax(logits: Slots) -> Slots:
    """Class probabilities of logits, float64 [classes]."""
    exponentials = np.exp(logits - logits.max())
    return np.asarray(exponentials / exponentials.sum())


def sigmoid(logits: Slots) -> Slots:
    """The probability of every element for itself, float64 of the same shape."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits))


_POSTS: dict[str, Callable[[Slots], Slots]] = {"softmax": softmax, "sigmoid": sigmoid, "none": np.asarray}


def supported_digits(promised_error: float) -> int:
    """Decimal digits of a probability that are free of CKKS noise, 0..6.

    Logits off by at most e move a softmax probability by at most e/2 (its slope p(1-p) is at most 1/4, and logits differ by up to 2e).
    """
    return max(0, min(6, math.floor(-math.log10(promised_error / 2))))
