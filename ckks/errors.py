"""The one error tree of he-serve. Every error a user can cause is one of these; its text names the thing and the remedy.

HeError
├── InputError             what the caller brought is bad (exit code 2, HTTP 4xx)
│   ├── DeviceError        a GPU was asked for that is not there
│   ├── ParameterError     a CKKS parameter set is malformed
│   │   └── SecurityError  it is well formed but below the required security
│   ├── FormatError        bytes that are not a conformant object of ours
│   ├── CircuitError       a circuit breaks a rule of the format
│   ├── ModelError         an ONNX model that cannot be compiled
│   ├── KeyFileError       a secret-key file that cannot be opened or written
│   └── EvaluationError    operands that do not fit together (level, scale, size)
│       └── MissingKeyError  an evaluation key the circuit needs was not given
├── DeviceMemoryError      a GPU's memory does not suffice, even with nothing cached
└── RemoteError            the other side failed or broke the protocol (exit code 3)

No message carries secret data: no residues, no slots, no key bytes.
"""

from __future__ import annotations


class HeError(Exception):
    """Root of every exception that he-serve raises on purpose."""


class InputError(HeError):
    """What the caller brought is bad."""


class DeviceError(InputError):
    """A GPU was asked for that is not there, or cannot be used; says what is missing."""


class ParameterError(InputError):
    """A CKKS parameter set is malformed."""


class SecurityError(ParameterError):
    """A parameter set is below the required security level."""


class FormatError(InputError):
    """Bytes that are not a conformant object of ours."""


class CircuitError(InputError):
    """A circuit breaks a rule of the circuit format."""


class ModelError(InputError):
    """An ONNX model that cannot be compiled; names the node and what to do instead."""


class KeyFileError(InputError):
    """A secret-key file that cannot be opened or written."""


class EvaluationError(InputError):
    """Operands that do not fit together."""


class MissingKeyError(EvaluationError):
    """An evaluation key the circuit needs was not given."""


class DeviceMemoryError(HeError):
    """A GPU's memory does not suffice, even with nothing cached."""


class RemoteError(HeError):
    """The other side of a connection failed or broke the protocol."""
