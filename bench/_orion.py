"""The other side of bench/models.py: orion-v2 (MIT), run by its own interpreter in processes of its own; imports nothing of this project.

`_orion.py compile FOLDER` writes FOLDER/model.orion; `client` makes keys and ciphertexts and later decrypts; `serve` evaluates.
FOLDER holds network.json (layers, CKKS parameters), weights.npz and inputs.npz. Commands and answers are JSON lines.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

Answer = dict[str, Any]


def compile_network(folder: Path) -> Answer:
    """The peer's compiler, with PyTorch: the network from its weights, fitted on the first input."""
    import numpy as np
    import orion_compiler.nn as on
    import torch
    from orion_compiler import CKKSParams, Compiler

    plan = json.loads((folder / "network.json").read_text())

    class Network(on.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.order = list[str]()
            flat = False
            for i, (kind, sizes) in enumerate(plan["layers"]):
                if kind == "conv":
                    self.put(f"l{i}", on.Conv2d(*sizes[:3], stride=sizes[3], padding=sizes[4]))
                else:
                    if not flat:
                        self.put("flat", on.Flatten())
                    flat = True
                    self.put(f"l{i}", on.Linear(*sizes))
                if i + 1 < len(plan["layers"]):
                    norm = on.BatchNorm2d if kind == "conv" else on.BatchNorm1d
                    self.put(f"b{i}", norm(sizes[1]))
                    self.put(f"s{i}", on.Quad())

        def put(self, name: str, layer: Any) -> None:
            self.order.append(name)
            setattr(self, name, layer)

        def forward(self, x: Any) -> Any:
            for name in self.order:
                x = getattr(self, name)(x)
            return x

    network = Network().eval()
    arrays = {name: torch.from_numpy(a) for name, a in np.load(folder / "weights.npz").items()}
    unknown = network.load_state_dict(arrays, strict=False)
    missing = [name for name in unknown.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or unknown.unexpected_keys:
        raise ValueError(f"weights do not fit the network: {missing}, {unknown.unexpected_keys}")
    start = perf_counter()
    compiler = Compiler(network, CKKSParams(**plan["parameters"]))
    compiler.fit(torch.from_numpy(np.load(folder / "inputs.npz")["x"][:1]))
    compiler.compile_to_file(str(folder / "model.orion"))
    return {"compile_s": perf_counter() - start}


def client(folder: Path, tell: Callable[[Answer], None]) -> None:
    """Make keys, encrypt every row, then decrypt what the server answered."""
    import numpy as np
    from lattigo.ckks import Encoder, Parameters
    from lattigo.rlwe import Ciphertext, Decryptor, Encryptor, KeyGenerator, MemEvaluationKeySet
    from orion_evaluator import Model

    described, needs, level = Model.load((folder / "model.orion").read_bytes()).client_params()
    start = perf_counter()
    parameters = Parameters.from_dict(described)
    generator = KeyGenerator(parameters)
    secret = generator.gen_secret_key()
    public = generator.gen_public_key(secret)
    galois = [generator.gen_galois_key(secret, int(g)) for g in needs["galois_elements"]]
    keys = MemEvaluationKeySet(rlk=generator.gen_relin_key(secret), galois_keys=galois).marshal_binary()
    keygen_s = perf_counter() - start
    (folder / "orion-keys").write_bytes(keys)
    encoder, encryptor = Encoder(parameters), Encryptor(parameters, public)
    rows = np.load(folder / "inputs.npz")["x"].astype(float).reshape(-1, 784)
    for i, row in enumerate(rows):
        padded = row.tolist() + [0.0] * (parameters.max_slots() - row.size)
        plain = encoder.encode(padded, level, parameters.default_scale())
        (folder / f"in{i}").write_bytes(encryptor.encrypt_new(plain).marshal_binary())
    tell(
        {
            "keygen_s": keygen_s,
            "key_bytes": len(keys),
            "rotation_keys": len(galois),
            "ciphertext_bytes": (folder / "in0").stat().st_size,
            "parameters": described,
            "version": version("orion-v2-compiler"),
        }
    )
    decryptor = Decryptor(parameters, secret)
    for line in sys.stdin:
        answer = Ciphertext.unmarshal_binary((folder / f"out{json.loads(line)['row']}").read_bytes())
        slots = encoder.decode(decryptor.decrypt_new(answer), parameters.max_slots())
        tell({"logits": [float(x) for x in slots[:10]]})


def serve(folder: Path, tell: Callable[[Answer], None]) -> None:
    """Load the model and the keys, then evaluate the rows that are asked for; the time is that of `forward` alone."""
    from orion_evaluator import Evaluator, Model

    data = (folder / "model.orion").read_bytes()
    model = Model.load(data)
    evaluator = Evaluator(model.client_params()[0], (folder / "orion-keys").read_bytes())
    tell({"model_bytes": len(data)})
    for line in sys.stdin:
        row = json.loads(line)["row"]
        request = (folder / f"in{row}").read_bytes()
        start = perf_counter()
        (answer,) = evaluator.forward(model, [request])
        seconds = perf_counter() - start
        (folder / f"out{row}").write_bytes(answer)
        tell({"seconds": seconds, "peak_rss_bytes": peak_rss()})


def peak_rss() -> int:
    """The largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) * 1024


def main() -> None:
    role, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print must not come between the answers

    def tell(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    if role == "compile":
        tell(compile_network(folder))
    else:
        {"client": client, "serve": serve}[role](folder, tell)


if __name__ == "__main__":
    main()
