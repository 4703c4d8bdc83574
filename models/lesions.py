"""Synthetic seven-class skin lesions: a deterministic stand-in for HAM10000, whose pixels no package ships.

The seven classes carry HAM10000's names and order (Tschandl et al., Scientific Data 5, 2018); each one draws
asymmetry, border irregularity, colour and diameter (the ABCD rule of dermoscopy: Nachbar et al., JAAD 30(4),
1994) and its typical structures from its own distributions. The distributions overlap on purpose, so that no
classifier can be perfect. Nothing here is a photograph of skin, and nothing trained on it says anything about
one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models import lesion_textures as tx

# Actinic keratosis, basal cell carcinoma, benign keratosis, dermatofibroma, melanoma, nevus, vascular.
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

Spread = tuple[float, float]


@dataclass(frozen=True)
class Profile:
    """Distributions of one class, each (mean, standard deviation); lengths in half sides of the picture."""

    asymmetry: Spread
    irregularity: Spread
    radius: Spread
    softness: Spread
    variegation: Spread
    melanin: Spread
    blood: Spread


PROFILES = {
    "akiec": Profile(
        (0.35, 0.15), (0.35, 0.15), (0.56, 0.10), (0.10, 0.03), (0.40, 0.15), (0.25, 0.14), (0.36, 0.12)
    ),
    "bcc": Profile(
        (0.40, 0.15), (0.30, 0.15), (0.54, 0.10), (0.06, 0.03), (0.35, 0.15), (0.32, 0.16), (0.30, 0.12)
    ),
    "bkl": Profile(
        (0.30, 0.15), (0.30, 0.15), (0.58, 0.10), (0.03, 0.02), (0.35, 0.15), (0.75, 0.22), (0.06, 0.05)
    ),
    "df": Profile(
        (0.15, 0.10), (0.15, 0.10), (0.46, 0.08), (0.09, 0.03), (0.20, 0.10), (0.50, 0.16), (0.14, 0.07)
    ),
    "mel": Profile(
        (0.70, 0.20), (0.60, 0.20), (0.64, 0.10), (0.05, 0.03), (0.75, 0.20), (1.50, 0.35), (0.14, 0.10)
    ),
    "nv": Profile(
        (0.18, 0.12), (0.15, 0.10), (0.48, 0.10), (0.06, 0.03), (0.22, 0.12), (1.00, 0.28), (0.08, 0.06)
    ),
    "vasc": Profile(
        (0.22, 0.12), (0.20, 0.12), (0.46, 0.10), (0.04, 0.02), (0.25, 0.12), (0.18, 0.14), (1.00, 0.28)
    ),
}

# How often a lesion shows its class's structure; the rest must be told by shape and colour.
STRUCTURE_RATE = 0.8


def _draw(rng: np.random.Generator, spread: Spread) -> float:
    return max(0.01, float(rng.normal(*spread)))


def _contour(rng: np.random.Generator, angle: tx.Field, asymmetry: float, irregularity: float) -> tx.Field:
    """Relative radius at each angle: harmonics 1..3 break the symmetry, 5..10 roughen the border."""
    radius = np.ones_like(angle)
    for k in (1, 2, 3, 5, 6, 7, 8, 9, 10):
        size = 0.22 * asymmetry if k <= 3 else 0.11 * irregularity
        radius += size * rng.normal() / np.sqrt(k) * np.cos(k * angle + rng.uniform(0.0, 2.0 * np.pi))
    return np.clip(radius, 0.4, 1.6)


def _layers(rng: np.random.Generator, profile: Profile, n: int) -> tx.Layers:
    """Skin and lesion without structures, [n][n] each."""
    at = (np.arange(n) + 0.5) * (2.0 / n) - 1.0
    y, x = np.meshgrid(at, at, indexing="ij")
    asymmetry, irregularity = _draw(rng, profile.asymmetry), _draw(rng, profile.irregularity)
    radius, softness = _draw(rng, profile.radius), _draw(rng, profile.softness)
    variegation = min(1.0, _draw(rng, profile.variegation))

    turn, stretch = rng.uniform(0.0, 2.0 * np.pi), np.exp(0.15 * rng.normal())
    cx, cy = rng.normal(0.0, 0.09, size=2)
    u = ((x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)) * stretch / radius
    v = ((y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)) / (stretch * radius)
    rho = np.hypot(u, v) / _contour(rng, np.arctan2(v, u), asymmetry, irregularity)
    inside = 1.0 / (1.0 + np.exp(np.clip((rho - 1.0) * radius / (0.5 * softness + 0.01), -30.0, 30.0)))

    # Variegation: the pigment's strength varies in blotches, and asymmetry lets it fade to one side.
    blotches = (
        1.0
        + 0.9 * variegation * tx.smooth_field(rng, n, int(rng.integers(3, 6)))
        + 0.35 * asymmetry * np.clip(u, -1.2, 1.2)
    )
    tint = 1.0 + 0.5 * variegation * tx.smooth_field(rng, n, 3)
    tone = 0.75 * rng.beta(1.2, 4.0) + 0.04 * tx.smooth_field(rng, n, 3) + 0.03 * tx.smooth_field(rng, n, 14)
    flush = rng.uniform(0.0, 0.12) + 0.02 * tx.smooth_field(rng, n, 9)
    return tx.Layers(
        x=x,
        y=y,
        u=u,
        v=v,
        rho=rho,
        inside=inside,
        melanin=tone + inside * _draw(rng, profile.melanin) * np.clip(blotches, 0.1, None),
        blood=flush + inside * _draw(rng, profile.blood) * np.clip(tint, 0.1, None),
        white=np.zeros((n, n)),
        blue=np.zeros((n, n)),
    )


def _add_structures(layers: tx.Layers, rng: np.random.Generator, name: str) -> None:
    if rng.uniform() > STRUCTURE_RATE:
        return
    if name == "akiec":
        tx.strawberry_and_scale(layers, rng)
    elif name == "bcc":
        tx.branching_vessels(layers, rng)
    elif name == "bkl":
        tx.cysts_and_openings(layers, rng)
    elif name == "df":
        tx.central_scar(layers, rng)
    elif name == "mel":
        tx.pigment_network(layers, rng, regular=0.0)
        if rng.uniform() < 0.7:
            tx.blue_white_veil(layers, rng)
    elif name == "nv":
        tx.pigment_network(layers, rng, regular=1.0)
    else:
        tx.lacunae(layers, rng)


def _photograph(layers: tx.Layers, rng: np.random.Generator) -> tx.Field:
    """Colour [n][n][3] as photographed: with hair, uneven light, a dark rim, exposure and sensor noise."""
    colour = tx.develop(layers)
    for _ in range(min(6, int(rng.poisson(1.2)))):
        tx.draw_hair(colour, layers, rng)
    colour *= (1.0 + 0.04 * (rng.normal() * layers.x + rng.normal() * layers.y))[..., None]
    if rng.uniform() < 0.3:
        colour *= (1.0 - 0.9 * np.clip(np.hypot(layers.x, layers.y) - 0.95, 0.0, 0.5))[..., None]
    return colour * rng.uniform(0.9, 1.08) + rng.normal(0.0, 4.0, colour.shape)


def render(label: int, rng: np.random.Generator, size: int = 28) -> NDArray[np.uint8]:
    """One picture of class CLASSES[label]: uint8 [size][size][3], RGB.

    Drawn at twice the size and averaged down 2 x 2, so that hairs thinner than a pixel fade, not break up.
    Raises ValueError for a label outside 0..6 or a size below 8.
    """
    if not 0 <= label < len(CLASSES):
        raise ValueError(
            f"label {label} is not in 0..{len(CLASSES) - 1}; the classes are {', '.join(CLASSES)}"
        )
    if size < 8:
        raise ValueError(f"size {size} is too small for a lesion; use 8 or more")
    name = CLASSES[label]
    layers = _layers(rng, PROFILES[name], 2 * size)
    _add_structures(layers, rng, name)
    fine = _photograph(layers, rng)
    coarse: tx.Field = fine.reshape(size, 2, size, 2, 3).mean(axis=(1, 3))
    return np.clip(np.rint(coarse), 0, 255).astype(np.uint8)


def dataset(count: int, seed: int, size: int = 28) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`count` pictures, classes in turn (balanced): uint8 [count][size][size][3] and labels int64 [count].

    Picture i depends on (seed, i) alone, not on count, so a longer data set extends a shorter one. Give
    training and test sets different seeds.
    """
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        images[i] = render(int(label), np.random.default_rng([seed, i]), size)
    return images, labels
