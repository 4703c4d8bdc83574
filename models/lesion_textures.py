"""Pigment layers of a synthetic lesion and the dermoscopic structures painted into them.

A picture is kept as densities of light absorbers and scatterers, and turned into colour only at the end. Skin
colour is close to Beer-Lambert absorption by melanin and haemoglobin (Tsumura et al., JOSA A 16(9), 1999), so
two densities give the range from nevus brown to angioma red, on any skin tone, without a palette per class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]

# Optical density in R, G, B: one unit of melanin turns fair skin nevus brown, one of blood angioma red.
MELANIN = np.array([0.55, 0.84, 1.10])
BLOOD = np.array([0.34, 1.22, 1.02])
FAIR_SKIN = np.array([232.0, 194.0, 174.0])
SCALE_WHITE = np.array([236.0, 216.0, 204.0])
VEIL_BLUE = np.array([116.0, 117.0, 136.0])
HAIR_BROWN = np.array([46.0, 34.0, 30.0])


@dataclass
class Layers:
    """Maps of one picture, all [n][n].

    x, y: picture coordinates in [-1, 1]. u, v: lesion coordinates, in lesion radii. rho: distance from the
    lesion's centre relative to its contour, so that 1 is the border. inside: soft lesion mask in [0, 1].
    melanin, blood: densities. white, blue: weights in [0, 1] with which those colours cover the absorbed one.
    """

    x: Field
    y: Field
    u: Field
    v: Field
    rho: Field
    inside: Field
    melanin: Field
    blood: Field
    white: Field
    blue: Field


def smooth_field(rng: np.random.Generator, n: int, cells: int) -> Field:
    """Random field [n][n] of unit peak, smoothstep-interpolated over a (cells + 1)^2 lattice of normals."""
    knots = rng.normal(size=(cells + 1, cells + 1))
    at = np.linspace(0.0, cells, n, endpoint=False)
    low = at.astype(np.int64)
    frac = at - low
    weight = frac * frac * (3.0 - 2.0 * frac)
    spread = np.zeros((n, cells + 1))
    spread[np.arange(n), low] = 1.0 - weight
    spread[np.arange(n), low + 1] = weight
    field: Field = spread @ knots @ spread.T
    field /= np.abs(field).max()
    return field


def _spots(
    layers: Layers, rng: np.random.Generator, count: int, width: tuple[float, float], reach: float
) -> Field:
    """Union of `count` round spots, [n][n] in [0, 1]; width (range of radii) and reach in lesion radii."""
    clear = np.ones_like(layers.u)
    for _ in range(count):
        angle, away = rng.uniform(0.0, 2.0 * np.pi), reach * np.sqrt(rng.uniform())
        du, dv = layers.u - away * np.cos(angle), layers.v - away * np.sin(angle)
        clear *= 1.0 - np.exp(-(du * du + dv * dv) / rng.uniform(*width) ** 2)
    return (1.0 - clear) * layers.inside


def pigment_network(layers: Layers, rng: np.random.Generator, regular: float) -> None:
    """Honeycomb of melanin ridges; regular: 1 even over the lesion (nevus), 0 in patches (melanoma)."""
    n = len(layers.u)
    # Radians per half picture: a mesh of 4 to 7 pixels at size 28, near the finest that can be seen.
    pitch = rng.uniform(13.0, 20.0)
    bend = 2.0 * smooth_field(rng, n, 4)
    # Three plane waves at 60 degrees have their minima on a honeycomb.
    waves = np.zeros((n, n))
    for turn in (0.0, np.pi / 3, -np.pi / 3):
        phase = rng.uniform(0.0, 2.0 * np.pi)
        waves += np.cos(pitch * (layers.x * np.cos(turn) + layers.y * np.sin(turn)) + bend + phase)
    patches = np.clip(0.5 + 1.5 * smooth_field(rng, n, 3), 0.0, 1.5)
    layers.melanin -= rng.uniform(0.08, 0.18) * (regular + (1.0 - regular) * patches) * waves * layers.inside


def blue_white_veil(layers: Layers, rng: np.random.Generator) -> None:
    """A smooth blue-grey region over part of the lesion: pigment deep in the dermis under thickened skin."""
    region = np.clip(1.6 * smooth_field(rng, len(layers.u), 3) - 0.3, 0.0, 1.0)
    layers.blue = np.maximum(layers.blue, rng.uniform(0.5, 0.9) * region * layers.inside)


def cysts_and_openings(layers: Layers, rng: np.random.Generator) -> None:
    """Milia-like cysts (bright dots) and comedo-like openings (dark plugs) of a seborrhoeic keratosis."""
    layers.white = np.maximum(
        layers.white, 0.75 * _spots(layers, rng, int(rng.integers(3, 8)), (0.07, 0.14), 0.8)
    )
    layers.melanin += 0.9 * _spots(layers, rng, int(rng.integers(2, 6)), (0.07, 0.14), 0.8)


def central_scar(layers: Layers, rng: np.random.Generator) -> None:
    """White scar-like centre of a dermatofibroma, with a faint brown rim."""
    centre = np.exp(-((layers.rho / rng.uniform(0.35, 0.60)) ** 2))
    layers.white = np.maximum(layers.white, rng.uniform(0.4, 0.8) * centre)
    layers.melanin += 0.25 * np.exp(-(((layers.rho - 0.85) / 0.2) ** 2)) * layers.inside


def lacunae(layers: Layers, rng: np.random.Generator) -> None:
    """Dark red to violet lagoons of blood of an angioma, separated by paler septa."""
    lagoons = _spots(layers, rng, int(rng.integers(4, 10)), (0.16, 0.30), 0.75)
    layers.blood += rng.uniform(0.5, 1.0) * (lagoons - 0.3 * layers.inside)
    layers.melanin += rng.uniform(0.0, 0.5) * lagoons


def branching_vessels(layers: Layers, rng: np.random.Generator) -> None:
    """Thin wavy vessels of a basal cell carcinoma, and now and then blue-grey nests."""
    for _ in range(int(rng.integers(3, 7))):
        angle = rng.uniform(0.0, np.pi)
        along = layers.u * np.cos(angle) + layers.v * np.sin(angle)
        across = layers.v * np.cos(angle) - layers.u * np.sin(angle)
        wave = 0.12 * np.sin(rng.uniform(3.0, 6.0) * along + rng.uniform(0.0, 2.0 * np.pi))
        thread = np.exp(-(((across - wave - rng.uniform(-0.7, 0.7)) / 0.07) ** 2))
        layers.blood += (
            rng.uniform(0.4, 0.8)
            * thread
            * np.clip(along * rng.choice([-1.0, 1.0]) + 0.6, 0.0, 1.0)
            * layers.inside
        )
    if rng.uniform() < 0.5:
        nests = _spots(layers, rng, int(rng.integers(1, 4)), (0.15, 0.28), 0.7)
        layers.blue = np.maximum(layers.blue, 0.8 * nests)


def strawberry_and_scale(layers: Layers, rng: np.random.Generator) -> None:
    """Red net around pale follicles ("strawberry") and white flakes of an actinic keratosis."""
    cells = rng.uniform(7.0, 11.0)
    follicles = np.clip(np.cos(cells * layers.x) * np.cos(cells * layers.y), 0.0, 1.0)
    layers.blood += rng.uniform(0.1, 0.3) * (0.5 - follicles) * layers.inside
    flakes = np.clip(2.0 * smooth_field(rng, len(layers.u), 7) - 0.7, 0.0, 1.0)
    layers.white = np.maximum(layers.white, rng.uniform(0.4, 0.8) * flakes * layers.inside)


def develop(layers: Layers) -> Field:
    """Colour [n][n][3] in 0..255 (not yet clipped) of the layers."""
    density = (
        np.clip(layers.melanin, 0.0, None)[..., None] * MELANIN
        + np.clip(layers.blood, 0.0, None)[..., None] * BLOOD
    )
    colour: Field = FAIR_SKIN * np.exp(-density)
    colour += layers.blue[..., None] * (VEIL_BLUE - colour)
    # Scale and scars share the skin's tone: blend towards half way between white and the brightest skin.
    colour += layers.white[..., None] * (0.5 * (SCALE_WHITE + colour.max(axis=(0, 1))) - colour)
    return colour


def draw_hair(colour: Field, layers: Layers, rng: np.random.Generator) -> None:
    """Darkens `colour` along one thin, slightly curved hair that crosses the picture."""
    angle = rng.uniform(0.0, np.pi)
    along = layers.x * np.cos(angle) + layers.y * np.sin(angle)
    across = layers.y * np.cos(angle) - layers.x * np.sin(angle)
    offset = across - rng.uniform(-0.9, 0.9) - rng.uniform(-0.3, 0.3) * along**2
    weight = rng.uniform(0.4, 0.85) * np.exp(-((offset / rng.uniform(0.015, 0.03)) ** 2))
    colour += weight[..., None] * (HAIR_BROWN - colour)
