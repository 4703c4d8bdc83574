"""OpenFHE's binary serialisation (1.4 to 1.6, cereal's portable binary), as far as CKKS clients need it: strictly read, and written back.

All integers are little-endian. A class writes its version where it occurs first; shared objects are numbered in the order they occur, and
later occurrences are references by number. Every count is checked against the bytes that are left before anything is made of it, so
memory is bounded by the input. Residues stay in OpenFHE's NTT order under the roots that the object states: keys/openfhe.py converts.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from ckks.errors import FormatError
from ckks.parameters import MAX_LIMBS, MAX_LOG_DEGREE
from ckks.primes import is_prime
from ckks.types import Residues

T = TypeVar("T")
_NEW, _STATIC_TYPE = 1 << 31, 1 << 30  # cereal: bit 31 of an id announces a first occurrence
_CONTEXT_VERSION = _CIPHERTEXT_VERSION = 1
_EVALUATE, _FLOODING = 0, 1
_HYBRID, _FIXED_MANUAL, _EVALUATION, _PACKED = 2, 0, 0, 4
_MAX_DEGREE, _MAX_TEXT, _MAX_KEYS = 1 << MAX_LOG_DEGREE, 256, 4096
_PARAMETERS = "lbcrypto::CryptoParametersCKKSRNS"
_SCHEME = "lbcrypto::SchemeCKKSRNS"
_EVALUATION_KEY = "lbcrypto::EvalKeyRelinImpl<lbcrypto::DCRTPoly>"


@dataclass(frozen=True)
class Limb:
    """A prime and the primitive 2N-th root of unity that OpenFHE's transform uses for it."""

    degree: int
    prime: int
    root: int


@dataclass(frozen=True)
class Context:
    """What a context says of its parameters. scale_bits: log2 of the one scale; digits: dnum."""

    limbs: tuple[Limb, ...]
    scale_bits: int
    digits: int


@dataclass(frozen=True)
class Prefix:
    """The bytes of an object up to its polynomials: the same for all of its kind, so those written back start with them."""

    data: bytes
    objects: int
    seen: frozenset[str]
    modulus: tuple[int, int]  # where the product of all primes is
    limbs: tuple[int, ...]  # where each prime and its root are
    decryption: int  # where the fields of noise flooding are


@dataclass(frozen=True, eq=False)
class Polynomials:
    """residues: uint64 [poly][row][N], OpenFHE's NTT order; rows: their limbs."""

    context: Context
    prefix: Prefix
    residues: Residues
    rows: tuple[Limb, ...]


@dataclass(frozen=True, eq=False)
class SwitchKey:
    """An evaluation key over data and special limbs: a and b, uint64 [digit][row][N], OpenFHE's NTT order."""

    context: Context
    a: Residues
    b: Residues
    rows: tuple[Limb, ...]


def read_ciphertext(data: bytes) -> Polynomials:
    """A CKKS ciphertext. Raises FormatError."""
    reader = _Reader(data)

    def body() -> Polynomials:
        reader.version("Ciphertext", _CIPHERTEXT_VERSION)
        context, prefix = reader.crypto_object()
        polys = reader.polynomials(3)
        slots, level, hops, degree, scale = reader.unpack("<4Id")
        integer_scale, encoding = reader.native(), reader.number()
        metadata = reader.shared("metadata", lambda: reader.count(0), typed=False)
        rows = polys[0][1]
        if rows != context.limbs[: len(rows)] or level != len(context.limbs) - len(rows) or metadata != 0:
            raise FormatError("an OpenFHE ciphertext is not at the level that it states")
        if (
            (hops, integer_scale, encoding) != (0, 1, _PACKED)
            or degree not in (1, 2)
            or not 1 < scale < 2.0**120
        ):
            raise FormatError("an OpenFHE ciphertext has a state that CKKS clients do not produce")
        if not 0 < slots <= rows[0].degree // 2:
            raise FormatError("an OpenFHE ciphertext has more slots than its ring")
        return Polynomials(context, prefix, np.stack([residues for residues, _ in polys]), rows)

    return reader.only("ciphertext", body)


def read_secret_key(data: bytes) -> Polynomials:
    """A private key: one polynomial. Raises FormatError."""
    reader = _Reader(data)

    def body() -> Polynomials:
        reader.version("PrivateKey")
        reader.version("Key")
        context, prefix = reader.crypto_object()
        residues, rows = reader.polynomial()
        if rows != context.limbs:
            raise FormatError("an OpenFHE private key has other primes than its context")
        return Polynomials(context, prefix, residues[None], rows)

    return reader.only("private key", body)


def read_switch_key(data: bytes) -> SwitchKey:
    """An evaluation key, serialised alone. Raises FormatError."""
    reader = _Reader(data)
    return reader.only("evaluation key", reader.switch_key, _EVALUATION_KEY)


def read_switch_keys(data: bytes) -> dict[int, SwitchKey]:
    """A map from Galois elements to evaluation keys. Raises FormatError."""
    reader = _Reader(data)

    def body() -> dict[int, SwitchKey]:
        found = {}
        for _ in range(reader.count(_MAX_KEYS)):
            element = reader.number()
            found[element] = reader.shared("evaluation key", reader.switch_key, _EVALUATION_KEY)
        return found

    return reader.only("map of keys", body, typed=False)


def write_ciphertext(template: Polynomials, residues: Residues, power: int = 1) -> bytes:
    """A ciphertext [poly][row][N], OpenFHE's NTT order, of the context of `template`; its scale is 2^(power * scale_bits)."""
    level = len(template.context.limbs) - residues.shape[1]
    writer = _Writer(template.prefix)
    writer.put("<Q", len(residues))
    rows = template.context.limbs[: residues.shape[1]]
    for poly in residues:
        writer.polynomial(poly, rows)
    slots, scale = rows[0].degree // 2, 2.0 ** (power * template.context.scale_bits)
    writer.put("<4IdQI", slots, level, 0, power, scale, 1, _PACKED)
    writer.put("<IQ", writer.number() | _NEW, 0)
    return b"".join(writer.parts)


def over(template: Polynomials, primes: tuple[int, ...], roots: tuple[int, ...]) -> Polynomials:
    """The same in a context over other primes of the same ring, as many as before, with these roots of unity."""
    prefix, data = template.prefix, bytearray(template.prefix.data)
    limbs = tuple(Limb(template.rows[0].degree, q, root) for q, root in zip(primes, roots, strict=True))
    for place, limb in zip(prefix.limbs, limbs, strict=True):
        struct.pack_into("<2Q", data, place, limb.prime, limb.root)
    start, end = prefix.modulus
    modulus = _big(math.prod(primes))
    data[start:end] = modulus
    moved = len(modulus) - (end - start)
    places = tuple(place + moved for place in prefix.limbs)
    prefix = replace(
        prefix,
        data=bytes(data),
        modulus=(start, end + moved),
        limbs=places,
        decryption=prefix.decryption + moved,
    )
    return replace(template, context=replace(template.context, limbs=limbs), prefix=prefix, rows=limbs)


def flooded(template: Polynomials, deviation: float) -> Polynomials:
    """The same in a context whose decryptions add Gaussian noise of this standard deviation to every coefficient.

    OpenFHE offers this mode in contexts of 59-bit scales only; a context read back has it with any primes.
    """
    prefix, data = template.prefix, bytearray(template.prefix.data)
    struct.pack_into("<2I", data, prefix.decryption, _EVALUATE, _FLOODING)
    struct.pack_into("<d", data, prefix.decryption + 12, deviation)  # after the security level
    return replace(template, prefix=replace(prefix, data=bytes(data)))


def write_secret_key(template: Polynomials, residues: Residues) -> bytes:
    """A private key from its residues [row][N], OpenFHE's NTT order, of the context and with the tag of `template`, another private key."""
    writer = _Writer(template.prefix)
    writer.polynomial(residues, template.context.limbs)
    return b"".join(writer.parts)


def _big(value: int) -> bytes:
    """A big number without its class's version."""
    words = max(1, -(-value.bit_length() // 64))
    return (
        struct.pack("<Q", words) + value.to_bytes(8 * words, "little") + struct.pack("<I", value.bit_length())
    )


class _Reader:
    """A cursor over one archive, with the classes and shared objects met so far."""

    def __init__(self, data: bytes) -> None:
        self.data, self.offset = data, 0
        self.seen: set[str] = set()
        self.types: list[str] = []
        self.objects: list[tuple[str, object]] = []
        self.modulus, self.decryption = (0, 0), 0
        self.limb_places: list[int] = []
        if self.take(1) != b"\1":
            raise FormatError("not an OpenFHE object in little-endian binary form")

    def only(self, kind: str, body: Callable[[], T], type_name: str = "", typed: bool = True) -> T:
        """The one object of the archive."""
        value = self.shared(kind, body, type_name, typed)
        if self.offset != len(self.data):
            raise FormatError("an OpenFHE object has bytes after its end")
        return value

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.offset:
            raise FormatError("an OpenFHE object is cut short")
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def number(self) -> int:
        return self.unpack("<I")[0]

    def count(self, most: int) -> int:
        (n,) = self.unpack("<Q")
        if n > most:
            raise FormatError(f"an OpenFHE object states {n} elements where at most {most} can be")
        return n

    def text(self) -> str:
        text = self.take(self.count(_MAX_TEXT))
        if not text.isascii():
            raise FormatError("a name in an OpenFHE object is not ASCII")
        return text.decode("ascii")

    def version(self, name: str, expected: int = 0) -> None:
        if name not in self.seen:
            if (found := self.number()) != expected:
                raise FormatError(
                    f"an OpenFHE object has {name} of version {found}; 1.4 to 1.6 write {expected}"
                )
            self.seen.add(name)

    def shared(self, kind: str, body: Callable[[], T], type_name: str = "", typed: bool = True) -> T:
        """A shared pointer that is not null; type_name: "" where the static type suffices; typed: False where no type is written."""
        if typed:
            tag, name = self.number(), ""
            if tag & _NEW:
                name = self.text()
                self.types.append(name)
                if tag & ~_NEW != len(self.types):
                    raise FormatError("an OpenFHE object numbers its types out of order")
            elif tag != _STATIC_TYPE:
                if not 0 < tag <= len(self.types):
                    raise FormatError("an OpenFHE object lacks a part, or names an unknown type")
                name = self.types[tag - 1]
            if name != type_name:
                raise FormatError(f"an OpenFHE object has a part of type {name[:60]!r}, not {type_name!r}")
        tag = self.number()
        if tag & _NEW:
            self.objects.append(("unfinished", None))
            place = len(self.objects)
            if tag & ~_NEW != place:
                raise FormatError("an OpenFHE object numbers its parts out of order")
            value = body()
            self.objects[place - 1] = (kind, value)
            return value
        if not 0 < tag <= len(self.objects) or self.objects[tag - 1][0] != kind:
            raise FormatError(f"an OpenFHE object refers to a {kind} that is not there")
        return self.objects[tag - 1][1]  # type: ignore[return-value] # of this kind, so made by this body

    # ---- parameters ----

    def native(self) -> int:
        self.version("NativeInteger")
        return self.unpack("<Q")[0]

    def big(self) -> int:
        self.version("BigInteger")
        start = self.offset
        value = int.from_bytes(self.take(8 * self.count(2 * MAX_LIMBS)), "little")
        if self.number() != value.bit_length():
            raise FormatError("a big number in an OpenFHE object has another size than stated")
        if value:  # a modulus: rings have no other
            self.modulus = start, self.offset
        return value

    def ring(self, name: str, number: Callable[[], int]) -> tuple[int, int, int]:
        """Degree, modulus and root."""
        self.version(name)
        order, degree = self.unpack("<2I")
        modulus, root, *unused = (number() for _ in range(4))
        if not 2 <= degree <= _MAX_DEGREE or degree & (degree - 1) or order != 2 * degree or any(unused):
            raise FormatError(f"an OpenFHE object has a ring of degree {degree}")
        return degree, modulus, root

    def limb(self) -> Limb:
        self.version("NativeRing")
        degree, q, root = self.ring("NativeElements", self.native)
        self.limb_places.append(self.offset - 32)  # q, root, and two numbers that are 0
        if not 2 < q < 1 << 61 or q % (2 * degree) != 1 or not is_prime(q) or pow(root, degree, q) != q - 1:
            raise FormatError(
                "an OpenFHE object has a modulus that is no NTT prime, or a wrong root of unity"
            )
        return Limb(degree, q, root)

    def limbs(self) -> tuple[Limb, ...]:
        self.version("Ring")
        degree, modulus, _ = self.ring("BigElements", self.big)
        limbs = tuple(self.shared("limb", self.limb) for _ in range(self.count(MAX_LIMBS)))
        primes = {limb.prime for limb in limbs}
        same = all(limb.degree == degree for limb in limbs)
        if not limbs or not same or len(primes) != len(limbs) or math.prod(primes) != modulus:
            raise FormatError("an OpenFHE ring is not the product of its primes")
        return limbs

    def encoding(self) -> int:
        self.version("Encoding")
        (scale_bits,) = self.unpack("<Q")
        for _ in range(3):
            self.native()
        self.unpack("<2I")
        return scale_bits

    def parameters(self) -> Context:
        for name in ("CkksParameters", "RnsParameters", "RlweParameters", "Parameters"):
            self.version(name)
        limbs, scale_bits = self.shared("ring", self.limbs), self.shared("encoding", self.encoding)
        self.unpack(
            "<2fQId5I"
        )  # error width, assurance; noise scale, digit size, noise estimate; depth and counts
        self.unpack("<3I")  # kind of secret, proxy mode, multiparty mode
        self.decryption = self.offset
        self.unpack("<3I3dI")  # execution mode, decryption mode, security level; flooding; parties
        switching, rescaling, _, _, digits, *_ = self.unpack("<11I")
        if (switching, rescaling) != (_HYBRID, _FIXED_MANUAL):
            raise FormatError("an OpenFHE context must use HYBRID key switching and FIXEDMANUAL rescaling")
        if not 1 <= digits <= len(limbs) or not 0 < scale_bits < 60:
            raise FormatError("an OpenFHE context has impossible digits or scale")
        return Context(limbs, scale_bits, digits)

    def scheme(self) -> int:
        for name in ("CkksScheme", "RnsScheme", "Scheme"):
            self.version(name)
        if self.unpack("<2I") != (0, 0):
            raise FormatError("an OpenFHE context with bootstrapping or scheme switching is not for clients")
        return self.number()

    def context(self) -> Context:
        self.version("Context", _CONTEXT_VERSION)
        context = self.shared("parameters", self.parameters, _PARAMETERS)
        self.shared("scheme", self.scheme, _SCHEME)
        self.number()
        return context

    def crypto_object(self) -> tuple[Context, Prefix]:
        """The context, the key tag, and all that was read so far."""
        self.version("CryptoObject")
        context = self.shared("context", self.context)
        self.text()
        limbs, seen = tuple(self.limb_places), frozenset(self.seen)
        prefix = Prefix(
            self.data[: self.offset], len(self.objects), seen, self.modulus, limbs, self.decryption
        )
        return context, prefix

    # ---- polynomials and keys ----

    def switch_key(self) -> SwitchKey:
        for name in ("EvalKeyRelin", "EvalKey", "Key"):
            self.version(name)
        context, _ = self.crypto_object()
        a, b = self.polynomials(MAX_LIMBS), self.polynomials(MAX_LIMBS)
        rows = a[0][1]
        if len(a) != context.digits or len(b) != len(a) or rows[: len(context.limbs)] != context.limbs:
            raise FormatError("an OpenFHE evaluation key has other digits or primes than its context")
        first, second = (np.stack([residues for residues, _ in half]) for half in (a, b))
        return SwitchKey(context, first, second, rows)

    def polynomials(self, most: int) -> list[tuple[Residues, tuple[Limb, ...]]]:
        """One to `most` polynomials over the same limbs."""
        found = [self.polynomial() for _ in range(self.count(most))]
        if not found or any(rows != found[0][1] for _, rows in found):
            raise FormatError("an OpenFHE object has no polynomials, or over different primes")
        return found

    def polynomial(self) -> tuple[Residues, tuple[Limb, ...]]:
        """Residues uint64 [row][N], each below its prime, and their limbs."""
        self.version("Polynomial")
        rows, limbs = [], []
        for _ in range(self.count(MAX_LIMBS)):
            self.version("NativePolynomial")
            if self.number() != _STATIC_TYPE or self.take(1) != b"\1":
                raise FormatError("an OpenFHE polynomial lacks a limb")
            self.version("NativeVector")
            row = np.frombuffer(self.take(8 * self.count(_MAX_DEGREE)), dtype="<u8")
            modulus, form = self.native(), self.number()
            limb = self.shared("limb", self.limb)
            if (
                form != _EVALUATION
                or modulus != limb.prime
                or row.size != limb.degree
                or (row >= modulus).any()
            ):
                raise FormatError("an OpenFHE polynomial has a limb that is not of its prime, in NTT form")
            rows.append(row)
            limbs.append(limb)
        if self.number() != _EVALUATION or self.shared("ring", self.limbs) != tuple(limbs):
            raise FormatError("an OpenFHE polynomial is not over the ring that it states")
        return np.stack(rows), tuple(limbs)


class _Writer:
    """Continues an archive after a prefix: numbers go on where it stopped."""

    def __init__(self, prefix: Prefix) -> None:
        self.parts = [prefix.data]
        self._objects, self._seen = prefix.objects, set(prefix.seen)
        self._limbs: dict[Limb, int] = {}
        self._ring: int | None = None

    def put(self, form: str, *values: float) -> None:
        self.parts.append(struct.pack(form, *values))

    def number(self) -> int:
        self._objects += 1
        return self._objects

    def polynomial(self, residues: Residues, limbs: tuple[Limb, ...]) -> None:
        self._version("Polynomial")
        self.put("<Q", len(limbs))
        for row, limb in zip(residues, limbs, strict=True):
            self._version("NativePolynomial")
            self.put("<IB", _STATIC_TYPE, 1)
            self._version("NativeVector")
            self.put("<Q", row.size)
            self.parts.append(np.ascontiguousarray(row, dtype="<u8").tobytes())
            self.put("<QI", limb.prime, _EVALUATION)
            self._limb(limb)
        self.put("<II", _EVALUATION, _STATIC_TYPE)
        if self._ring is not None:
            self.put("<I", self._ring)
            return
        self._ring = self.number()
        self.put("<3I", self._ring | _NEW, 2 * limbs[0].degree, limbs[0].degree)
        for value in (math.prod(limb.prime for limb in limbs), 0, 0, 0):
            self.parts.append(_big(value))
        self.put("<Q", len(limbs))
        for limb in limbs:
            self._limb(limb)

    def _limb(self, limb: Limb) -> None:
        self.put("<I", _STATIC_TYPE)
        if limb in self._limbs:
            self.put("<I", self._limbs[limb])
            return
        self._limbs[limb] = self.number()
        self.put("<3I", self._limbs[limb] | _NEW, 2 * limb.degree, limb.degree)
        self.put("<4Q", limb.prime, limb.root, 0, 0)

    def _version(self, name: str) -> None:
        if name not in self._seen:
            self._seen.add(name)
            self.put("<I", 0)
