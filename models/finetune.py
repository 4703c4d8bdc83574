"""From a usual network to one that encrypts cheaply: ReLU and max pooling are replaced and the network is trained a little more.

Three networks come of it: the one as people write it (ReLU, max pooling); with average pooling, whose ReLUs the compiler approximates
(he-serve compile --calibrate); and with a learned quadratic for every ReLU, which compiles exactly and to the least depth.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from models import data, networks
from models.export import export_onnx
from models.train import RECIPES, Recipe, load, torch_logits, train


def usual_network(mean: Tensor, std: Tensor, classes: int, size: int) -> nn.Sequential:
    """[n][channels][size][size] in [0, 1] -> logits [n][classes]; ReLU and max pooling, BatchNorm before every ReLU."""
    first, second, hidden = (16, 32, 64) if size > 16 else (8, 16, 32)
    stem = {"kernel_size": 5, "stride": 2, "padding": 2} if size > 16 else {"kernel_size": 3, "padding": 1}
    left = size // 4
    return nn.Sequential(
        networks.Normalise(mean, std),
        nn.Conv2d(len(mean), first, **stem),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        *([nn.MaxPool2d(2)] if size <= 16 else []),
        nn.Conv2d(first, second, kernel_size=3, padding=1),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * left * left, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def with_average_pooling(network: nn.Sequential) -> nn.Sequential:
    """A copy in which every max pooling is an average."""
    layers = [
        nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
        if isinstance(layer, nn.MaxPool2d)
        else copy.deepcopy(layer)
        for layer in network
    ]
    return nn.Sequential(*layers)


def with_quadratics(network: nn.Sequential) -> nn.Sequential:
    """A copy in which every ReLU is a learned quadratic per channel; a BatchNorm must stand before each."""
    layers: list[nn.Module] = []
    for layer in network:
        if isinstance(layer, nn.ReLU):
            before = layers[-1]
            if not isinstance(before, nn.BatchNorm1d | nn.BatchNorm2d):
                raise ValueError("a ReLU without a BatchNorm before it: its inputs have no known range")
            layers.append(networks.LearnedQuadratic(before.num_features))
        else:
            layers.append(copy.deepcopy(layer))
    return nn.Sequential(*layers)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 bad arguments or data."""
    parser = argparse.ArgumentParser(prog="python -m models.finetune", description=__doc__)
    parser.add_argument("model", choices=["digits", "fashion", "lesion"])
    parser.add_argument("--data", type=Path, help="as for models.train")
    parser.add_argument("--epochs", type=int, help="of the usual network; default: 60 digits, 4 otherwise")
    parser.add_argument(
        "--more", type=int, help="epochs after each replacement; default: 20 digits, 2 otherwise"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for MODEL-*.onnx")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    few = options.model == "digits"
    recipe = replace(RECIPES[options.model], epochs=options.epochs or (60 if few else 4))
    again = replace(recipe, epochs=options.more or (20 if few else 2), rate=recipe.rate / 2)
    try:
        dataset = load(options.model, options.data)
    except data.DataError as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        return 2
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    pixels = dataset.train_images.astype(np.float32) / 255.0
    mean, std = (torch.from_numpy(f(pixels, axis=(0, 2, 3))) for f in (np.mean, np.std))
    options.out.mkdir(parents=True, exist_ok=True)

    usual = usual_network(mean, std, len(dataset.labels), pixels.shape[2])
    trained(usual, dataset, recipe, console, "ReLU, max pooling")
    averaged = with_average_pooling(usual)
    trained(averaged, dataset, again, console, "ReLU, average pooling")
    quadratic = with_quadratics(averaged)
    trained(quadratic, dataset, again, console, "quadratics, average pooling")
    for kind, network in (("usual", usual), ("relu", averaged), ("quadratic", networks.frozen(quadratic))):
        path = options.out / f"{options.model}-{kind}.onnx"
        channels, height, width = pixels.shape[1:]
        export_onnx(network, (channels, height, width), dataset.labels, dataset.description, path)
        console.print(f"wrote {path} ({path.stat().st_size} bytes)", markup=False, highlight=False)
    rows = np.random.default_rng(0).permutation(len(pixels))[:256]
    np.savez_compressed(options.out / f"{options.model}-calibration.npz", x=pixels[rows])
    return 0


def trained(
    network: nn.Sequential, dataset: data.Dataset, recipe: Recipe, console: Console, what: str
) -> None:
    """Train in place; print the test accuracy before and after."""
    before = accuracy(network, dataset)
    train(network.train(), dataset, recipe, console)
    console.print(
        f"{what}: test accuracy {before:.4f}, after {recipe.epochs} epochs {accuracy(network, dataset):.4f}",
        markup=False,
        highlight=False,
    )


def accuracy(network: nn.Sequential, dataset: data.Dataset) -> float:
    """The share of right test pictures."""
    return float((torch_logits(network, dataset.test_images).argmax(1) == dataset.test_labels).mean())


if __name__ == "__main__":
    sys.exit(main())
