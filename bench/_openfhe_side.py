"""OpenFHE's side, run by a Python that has its wheel: one JSON request a line on standard input, one JSON answer a line.

CKKS, HYBRID key switching, FIXEDMANUAL rescaling, ternary secret, symmetric encryption.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import openfhe

from bench._serve import serve


class Side:
    """One context with one secret key. Every method answers one kind of request; the answer is its JSON object."""

    def prepare(self, degree, limbs, first_bits, scale_bits, digits):
        """A context at 128 bits by OpenFHE's table; answers its primes, data and special."""
        p = openfhe.CCParamsCKKSRNS()
        p.SetSecretKeyDist(openfhe.UNIFORM_TERNARY)
        p.SetSecurityLevel(openfhe.HEStd_128_classic)
        p.SetRingDim(degree)
        p.SetBatchSize(degree // 2)
        p.SetMultiplicativeDepth(limbs - 1)
        p.SetFirstModSize(first_bits)
        p.SetScalingModSize(scale_bits)
        p.SetScalingTechnique(openfhe.FIXEDMANUAL)
        p.SetKeySwitchTechnique(openfhe.HYBRID)
        p.SetNumLargeDigits(digits)
        self.context = openfhe.GenCryptoContext(p)
        for feature in (openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE, openfhe.ADVANCEDSHE):
            self.context.Enable(feature)
        self.slots = degree // 2
        self.keys = self.context.KeyGen()
        zero = self._encrypt(np.zeros(self.slots))
        data, extended = _moduli(zero), _moduli(self.context.KeySwitchExt(zero, True))
        self.calls = {}
        return {"data_primes": data, "special_primes": extended[len(data) :]}

    def operations(self, file, step, hoisted):
        """Prepare the primitives on the vectors x and y of an npz file, with rotations by `step` and by all of `hoisted`."""
        with np.load(file) as arrays:
            x, y = arrays["x"], arrays["y"]
        cc, m = self.context, 4 * self.slots
        cc.EvalMultKeyGen(self.keys.secretKey)
        cc.EvalRotateKeyGen(self.keys.secretKey, hoisted)
        a, b, plain = self._encrypt(x), self._encrypt(y), cc.MakeCKKSPackedPlaintext(y)
        product = cc.EvalMult(a, b)
        digits = cc.EvalFastRotationPrecompute(a)
        extended = cc.EvalFastRotationExt(a, step, digits, True)

        def rotate_many():
            each = cc.EvalFastRotationPrecompute(a)
            return [cc.EvalFastRotation(a, s, m, each) for s in hoisted]

        rotated, last = np.roll(x, -step), np.roll(x, -hoisted[-1])
        decompose = lambda: cc.EvalFastRotationPrecompute(a)  # noqa: E731
        # Each: what is timed, a ciphertext that its result leads to, the slots that this should hold.
        self.calls = {
            "rotate": (lambda: cc.EvalRotate(a, step), None, rotated),
            "multiply + relinearise": (lambda: cc.EvalMult(a, b), None, x * y),
            "8 hoisted rotations": (rotate_many, lambda: rotate_many()[-1], last),
            "decompose + mod-up": (
                decompose,
                lambda: cc.EvalFastRotation(a, step, m, decompose()),
                rotated,
            ),
            "mod-down": (lambda: cc.KeySwitchDown(extended), None, rotated),
            "rescale": (lambda: cc.Rescale(product), None, x * y),
            "multiply by plaintext": (lambda: cc.EvalMult(a, plain), None, x * y),
        }
        return {}

    def matvec(self, name, file, extended):
        """Prepare the transform of an npz file (see bench.matvec.Transform), diagonals encoded, as operation `name`.

        extended: baby steps and products in basis QP, with one KeySwitchDown per giant step; else products in basis Q.
        Giant steps stay in QP either way.
        """
        with np.load(file) as f:
            x, diagonals, terms, folds, clear = (f[k] for k in ("x", "diagonals", "terms", "folds", "clear"))
        cc, slots = self.context, self.slots
        terms, folds = [tuple(term) for term in terms.tolist()], folds.tolist()
        steps = {step for pair in terms for step in pair} | set(folds)
        cc.EvalRotateKeyGen(self.keys.secretKey, sorted(steps - {0}))
        a = self._encrypt(np.tile(x, slots // len(x)))
        params = self._extended_params(a) if extended else None
        plains = {
            pair: cc.MakeCKKSPackedPlaintext(np.tile(np.roll(row, pair[0]), slots // len(row)), 1, 0, params)
            for pair, row in zip(terms, diagonals, strict=True)
        }
        giants, babies = sorted({g for g, _ in terms}), sorted({b for _, b in terms})

        def baby_step(step, digits):
            if extended:
                return cc.EvalFastRotationExt(a, step, digits, True) if step else cc.KeySwitchExt(a, True)
            return cc.EvalFastRotation(a, step, 4 * slots, digits) if step else a

        def run():
            digits = cc.EvalFastRotationPrecompute(a)
            rotated = {step: baby_step(step, digits) for step in babies}
            total = None
            for giant in giants:
                inner = None
                for baby in babies:
                    if (giant, baby) not in plains:
                        continue
                    term = cc.EvalMult(rotated[baby], plains[giant, baby])
                    if inner is None:
                        inner = term
                    else:
                        cc.EvalAddInPlace(inner, term)
                if giant:
                    inner = cc.KeySwitchDown(inner) if extended else inner
                    inner = cc.EvalFastRotationExt(inner, giant, cc.EvalFastRotationPrecompute(inner), True)
                elif not extended:
                    inner = cc.KeySwitchExt(inner, True)
                if total is None:
                    total = inner
                else:
                    cc.EvalAddInPlace(total, inner)
            result = cc.Rescale(cc.KeySwitchDown(total))
            return fold(result) if folds else result

        def fold(result):
            """result plus all its rotations by folds, summed in QP."""
            digits, total = cc.EvalFastRotationPrecompute(result), cc.KeySwitchExt(result, True)
            for step in folds:
                cc.EvalAddInPlace(total, cc.EvalFastRotationExt(result, step, digits, True))
            return cc.KeySwitchDown(total)

        self.calls[name] = (run, None, clear)
        return {}

    def forget(self, name):
        """Free an operation's plaintexts; keys stay."""
        del self.calls[name]
        return {}

    def time(self, name, least_s, clock):
        """Mean seconds of an operation, by the clock called so, over as many calls as fill `least_s` seconds."""
        now = getattr(time, clock)
        call, start, calls = self.calls[name][0], now(), 0
        while True:
            call()
            calls += 1
            if (elapsed := now() - start) >= least_s:
                return {"seconds": elapsed / calls}

    def error(self, name):
        """Largest absolute error over the slots that matter: those whose clear value is not NaN."""
        call, finish, clear = self.calls[name]
        plain = self.context.Decrypt(self.keys.secretKey, (finish or call)())
        plain.SetLength(self.slots)
        off = np.abs(np.array(plain.GetRealPackedValue()) - np.tile(clear, self.slots // len(clear)))
        return {"error": float(np.nanmax(off))}

    def peak(self):
        """Peak memory of this process; not from getrusage, whose figure a new process inherits from its parent."""
        (line,) = [s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM")]
        return {"bytes": int(line.split()[1]) * 1024}

    def _encrypt(self, values):
        return self.context.Encrypt(self.keys.secretKey, self.context.MakeCKKSPackedPlaintext(values))

    def _extended_params(self, ciphertext):
        """The ring parameters of basis QP, for encoding plaintexts over it.

        C++ callers ask the context for them; the Python API has no such call, but reads a context from a file: so this one is written
        out as JSON, given the special primes as further primes of its own, and read back.
        """
        polynomial = _polynomial(self.context.KeySwitchExt(ciphertext, True))
        context = _json(self.context)
        ring = _holder(context, "elp")["elp"]["ptr_wrapper"]["data"]
        ring["value0"]["cm"].update(_modulus(polynomial["p"]))
        data_count, template = len(ring["p"]), json.dumps(ring["p"][1])
        for i, tower in enumerate(polynomial["v"][data_count:]):
            prime = json.loads(template)
            prime["ptr_wrapper"]["id"] = (
                (1 << 31) + 1_000 + i
            )  # bit 31: an object that has not occurred before
            fields, source = (
                prime["ptr_wrapper"]["data"]["value0"],
                tower["p"]["ptr_wrapper"]["data"]["value0"],
            )
            fields["cm"]["v"], fields["ru"]["v"] = source["cm"]["v"], source["ru"]["v"]
            ring["p"].append(prime)
        _holder(context, "dnum")["dnum"] = len(
            ring["p"]
        )  # any that divides the primes evenly: nothing is switched there
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "context.json")
            file.write_text(json.dumps(context))
            self.wide, _ = openfhe.DeserializeCryptoContext(str(file), openfhe.JSON)
        return self.wide.GetElementParams()


def _json(value):
    return json.loads(openfhe.Serialize(value, openfhe.JSON))


def _polynomial(ciphertext):
    """The first polynomial of a ciphertext as OpenFHE writes it: "v" its towers, "p" its ring."""
    return _json(ciphertext)["value0"]["ptr_wrapper"]["data"]["v"][0]


def _moduli(ciphertext):
    return [tower["v"]["ptr_wrapper"]["data"]["m"]["v"] for tower in _polynomial(ciphertext)["v"]]


def _modulus(ring):
    """A ring's composite modulus as OpenFHE writes it: words and bit length."""
    return {key: ring["ptr_wrapper"]["data"]["value0"]["cm"][key] for key in ("v", "m")}


def _holder(value, name):
    """The first object with an entry called `name` anywhere in parsed JSON, depth first; None if there is none."""
    if isinstance(value, dict):
        if name in value:
            return value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            if (found := _holder(item, name)) is not None:
                return found
    return None


if __name__ == "__main__":
    serve(Side())
