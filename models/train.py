"""Trains a demonstration network; writes its ONNX file and sample inputs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from models import data, networks
from models.export import export_onnx, onnx_logits
from models.sampling import write_samples

HERE = Path(__file__).resolve().parent
BATCH = 128
# A larger pre-activation costs a penalty: rare ones would widen the range that the circuit must carry.
COMFORT, EXCESS_WEIGHT = 5.0, 10.0


@dataclass(frozen=True)
class Recipe:
    """Epochs, peak learning rate, and augmentation: turns by 90 degrees, left-right mirroring."""

    epochs: int
    rate: float
    turns: bool
    mirror: bool


RECIPES = {
    "lesion": Recipe(epochs=20, rate=4e-3, turns=True, mirror=True),
    "lesion64": Recipe(epochs=16, rate=4e-3, turns=True, mirror=True),
    "fashion": Recipe(epochs=8, rate=4e-3, turns=False, mirror=True),
    "digits": Recipe(epochs=60, rate=1e-2, turns=False, mirror=False),
    "digits_residual": Recipe(epochs=40, rate=1e-2, turns=False, mirror=False),
}


NETWORKS = {
    "digits": networks.digit_network,
    "digits_residual": networks.residual_network,
    "lesion64": networks.large_picture_network,
}


def inputs(pictures: NDArray[np.uint8]) -> Tensor:
    """float32 [n][channels][h][w] in [0, 1], always in a fresh contiguous tensor.

    One-channel batches with strides such as (64, 1, 8, 1) can corrupt the heap in torch 2.13's backward.
    """
    out = torch.empty(pictures.shape, dtype=torch.float32)
    out.copy_(torch.from_numpy(pictures))
    return out.div_(255.0)


def augment(batch: Tensor, recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """The whole batch under one random symmetry of the recipe; fresh contiguous tensor."""
    if recipe.turns:
        batch = torch.rot90(batch, int(rng.integers(4)), (2, 3))
    if recipe.mirror and rng.uniform() < 0.5:
        batch = torch.flip(batch, (3,))
    return torch.empty(batch.shape).copy_(batch)


def train(network: nn.Sequential, dataset: data.Dataset, recipe: Recipe, console: Console) -> None:
    """AdamW with a one-cycle rate and label smoothing, in place; progress on `console`."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(dataset.train_labels)
    steps = len(labels) // BATCH
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.epochs * steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    excess: list[Tensor] = []
    for layer in network:
        if isinstance(layer, networks.LearnedQuadratic):
            layer.register_forward_pre_hook(
                lambda _, args: excess.append(torch.relu(args[0].abs() - COMFORT).square().mean())
            )
    network.train()
    with Progress(console=console) as progress:
        task = progress.add_task(dataset.name, total=recipe.epochs * steps)
        for epoch in range(recipe.epochs):
            order, total = rng.permutation(len(labels)), 0.0
            for step in range(steps):
                rows = order[step * BATCH : (step + 1) * BATCH]
                excess.clear()
                logits = network(augment(inputs(dataset.train_images[rows]), recipe, rng))
                loss = loss_of(logits, labels[rows])
                if excess:  # networks of learned quadratics only
                    loss = loss + EXCESS_WEIGHT * torch.stack(excess).sum()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item()
                progress.update(
                    task,
                    advance=1,
                    description=f"{dataset.name} epoch {epoch + 1} loss {total / (step + 1):.3f}",
                )


def torch_logits(network: nn.Module, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits [n][classes] in evaluation mode."""
    network.eval()
    with torch.no_grad():
        parts = np.array_split(pictures, max(1, len(pictures) // 500))
        return torch.cat([network(inputs(part)) for part in parts]).numpy()


def load(name: str, source: Path | None) -> data.Dataset:
    """The data set of model `name`, from `source` where that model takes one.

    Raises data.DataError if it cannot be had or is smaller than one batch.
    """
    if name == "lesion":
        dataset = data.synthetic_lesions() if source is None else data.dermamnist(source)
    elif name == "lesion64" and source is None:
        dataset = data.large_synthetic_lesions()
    elif name == "fashion":
        dataset = data.fashion_mnist(source or data.FASHION_FOLDER)
    elif source is None:
        dataset = data.digits()
    else:
        raise data.DataError(f"{name} takes no other data; leave out --data")
    if len(dataset.train_labels) < BATCH:
        raise data.DataError(f"{len(dataset.train_labels)} training pictures; at least {BATCH} are needed")
    return dataset


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 bad arguments or data."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument(
        "--epochs", type=int, help="default: 20 lesion, 16 lesion64, 8 fashion, 60 digits, 40 digits_residual"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="lesion: a DermaMNIST npz file instead of synthetic lesions; fashion: the IDX folder",
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for MODEL.onnx and samples/ (default: models/)"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    recipe = RECIPES[options.model]
    if options.epochs is not None:
        if options.epochs < 1:
            parser.error("--epochs must be at least 1")
        recipe = Recipe(options.epochs, recipe.rate, recipe.turns, recipe.mirror)
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
    network = NETWORKS.get(options.model, networks.picture_network)(mean, std, len(dataset.labels))
    train(network, dataset, recipe, console)

    shape = dataset.test_images.shape[1:]
    path = options.out / f"{options.model}.onnx"
    options.out.mkdir(parents=True, exist_ok=True)
    export_onnx(
        networks.frozen(network), (shape[0], shape[1], shape[2]), dataset.labels, dataset.description, path
    )
    write_samples(dataset, options.out / "samples")

    before = torch_logits(network, dataset.test_images)
    after = onnx_logits(path, inputs(dataset.test_images).numpy())
    right = after.argmax(1) == dataset.test_labels
    recalls = [right[dataset.test_labels == c].mean() for c in np.unique(dataset.test_labels)]
    in_torch = (before.argmax(1) == dataset.test_labels).mean()
    for line in (
        dataset.description,
        f"accuracy on {len(right)} test pictures: torch {in_torch:.4f}, ONNX Runtime {right.mean():.4f}",
        f"mean of the classes' accuracies: {np.mean(recalls):.4f}",
        f"largest |logit| {np.abs(after).max():.2f}, torch - ONNX {np.abs(before - after).max():.1e}",
        f"wrote {path} ({path.stat().st_size} bytes)",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
