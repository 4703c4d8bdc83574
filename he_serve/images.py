"""What a caller hands in, as the model's input tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ckks.bundle import Bundle, InputSpec
from ckks.errors import InputError
from ckks.types import Slots

ImageLike: TypeAlias = "str | Path | Image.Image | npt.NDArray[Any]"
Rows: TypeAlias = "Slots | dict[str, Slots]"


def to_inputs(values: ImageLike | Mapping[str, ImageLike], bundle: Bundle) -> dict[str, Slots]:
    """Every input of the model, float64 of its shape: one value for the one input, or a mapping by name. Raises InputError."""
    if not isinstance(values, Mapping):
        return {bundle.input.name: to_input(values, bundle.input)}
    names = [spec.name for spec in bundle.inputs]
    if set(values) != set(names):
        raise InputError(f"the model takes the inputs {', '.join(names)}, got {', '.join(values) or 'none'}")
    return {spec.name: to_input(values[spec.name], spec) for spec in bundle.inputs}


def to_input(image: ImageLike, spec: InputSpec) -> Slots:
    """float64 of the model's input shape. Raises InputError naming what does not fit.

    An array is taken as it is. A picture is resized to height and width, made RGB or grey by the channel count, divided by 255 and
    put in channel, height, width order.
    """
    shape = tuple(spec.packing.shape)
    if isinstance(image, (str, Path)):
        image = read_image(Path(image))
    values = picture_values(image, shape) if isinstance(image, Image.Image) else np.asarray(image)
    if values.dtype.kind not in "fiu":
        raise InputError(f"the input must be an array of numbers, got dtype {values.dtype}")
    if values.shape == (1, *shape):
        values = values[0]
    if values.shape != shape:
        raise InputError(f"the model takes an input of shape {shape}, got {values.shape}")
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(values).all() or low < spec.low or high > spec.high:
        raise InputError(
            f"the model takes values from {spec.low:g} to {spec.high:g}, got {low:g} to {high:g}; scale the input as in training"
        )
    return values


def read_image(path: Path) -> Image.Image:
    """A picture from a file. Raises InputError."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        raise InputError(f"{path}: not a picture that can be read; give a PNG or JPEG") from None


def picture_values(picture: Image.Image, shape: tuple[int, ...]) -> Slots:
    """A picture as float64 [channel][height][width] in 0..1. Raises InputError for a model whose input is not a picture."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(
            f"this model takes an array of shape {shape}, not a picture; give an .npz with the array x"
        )
    channels, height, width = shape
    picture = picture.convert("RGB" if channels == 3 else "L")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, dtype=np.float64).reshape(height, width, channels) / 255.0
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_labelled(path: Path) -> tuple[Rows, npt.NDArray[Any]]:
    """Rows (see read_rows) and the array y of an .npz file, one label a row. Raises InputError."""
    rows = read_rows(path)
    arrays = _read(path)
    if "y" not in arrays:
        raise InputError(f"{path}: holds no array y; save it with numpy.savez(path, x=rows, y=labels)")
    return rows, arrays["y"]


def read_rows(path: Path) -> Rows:
    """Rows of inputs in an .npz file, float64 [rows][...]: its array x, or (there is none) all arrays but y by name. Raises InputError."""
    arrays = _read(path)
    found: dict[str, Slots] = {}
    for name in ["x"] if "x" in arrays else [name for name in arrays if name != "y"]:
        rows = arrays[name]
        if rows.dtype.kind not in "fiu" or rows.ndim < 2 or len(rows) == 0 or not np.isfinite(rows).all():
            raise InputError(
                f"{path}: {name} must hold at least one row of finite numbers, got {rows.dtype} {rows.shape}"
            )
        found[name] = np.asarray(rows, dtype=np.float64)
    if not found:
        raise InputError(
            f"{path}: holds no array x; save the rows with numpy.savez(path, x=rows), or with the names of several inputs"
        )
    if len({len(rows) for rows in found.values()}) > 1:
        raise InputError(f"{path}: {', '.join(found)} hold different numbers of rows")
    return found.get("x", found)


def each_row(rows: Rows) -> list[Slots | dict[str, Slots]]:
    """One value, or mapping of values by input name, for every row."""
    if not isinstance(rows, dict):
        return list(rows)
    return [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError, AttributeError, EOFError, KeyError):
        raise InputError(f"{path}: not an .npz file; save the rows with numpy.savez(path, x=rows)") from None
