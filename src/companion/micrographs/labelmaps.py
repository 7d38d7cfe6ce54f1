"""Labels as pictures, one map per micrograph of the same name: values are classes, or numbers of instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label, regionprops

from companion.errors import CompanionError
from companion.micrographs.images import IMAGE_SUFFIXES, SUFFIXES, read_label_map
from companion.micrographs.outlines import run_lengths
from companion.micrographs.pictures import Rows, Source

VOID = 255  # of label maps whose other values are 1...K: the border of an object, in PASCAL VOC


def labelmap(source: Source) -> Rows:
    """One label map per micrograph: a grey value (or index) per class, 0 for background.

    Values are 1...K or K equal steps to full scale (85, 170, 255), or any K values, taken in rising order.
    Each connected region of a value is an instance: touching defects of one class merge.
    """
    maps, n = _maps(source), len(source.classes)
    values = set().union(*(np.unique(_values(path)).tolist() for path in maps.values())) - {0}
    few = set(range(1, n + 1))
    if values - {VOID} and values - {VOID} <= few and VOID in values - few:
        source.notes[f"label map value {VOID} is taken as background"].append(str(source.labels))
        values.discard(VOID)
    if scale := _scale(sorted(values), n, source.found):
        shown = ", ".join(f"{value} is {name}" for value, name in zip(scale, source.classes, strict=True))
        source.notes["values of the label maps"].append(shown)
    for name, path in maps.items() if scale else ():
        pixels = _values(path)
        pixels = np.where(np.isin(pixels, scale), pixels, 0)
        regions = regionprops(label(pixels, connectivity=2), pixels)
        yield {"file_name": name}, [(scale.index(int(r.intensity_max)), _region(r, pixels.shape)) for r in regions]


def _scale(values: list[int], n: int, found: list[str]) -> list[int]:
    """The value of each of n classes, from those that label maps hold; none where they do not fit."""
    full = 255 if max(values, default=0) <= 255 else 65535
    equal = [round(full * k / n) for k in range(1, n + 1)]
    if set(values) <= set(range(1, n + 1)):
        return list(range(1, n + 1))
    if values == [full] and n > 1:
        found.append(f"label maps hold {full} alone, a mask without classes: name one class, not {n}")
    elif set(values) <= set(equal):
        return equal
    elif len(values) == n:
        return values
    else:
        shown = ", ".join(map(str, values[:6])) + ", ..." * (len(values) > 6)
        smoothed = "a mask that was smoothed or saved as JPEG, or " * (values != list(range(1, len(values) + 1)))
        guess = f"{smoothed}instance numbers (--format instances)"
        found.append(f"label maps hold {len(values)} values ({shown}), which do not fit {n} class(es): {guess}?")
    return []


def instances(source: Source) -> Rows:
    """One map per micrograph of instance numbers, 0 for background, as Cellpose, StarDist and Fiji write; one class."""
    if len(source.classes) != 1:
        raise CompanionError(f"instance numbers do not say a class: name one, not {', '.join(source.classes)}")
    for name, path in _maps(source).items():
        pixels = _values(path)
        numbers = np.searchsorted(np.unique([0, *np.unique(pixels)]), pixels)  # without gaps
        yield {"file_name": name}, [(0, _region(region, pixels.shape)) for region in regionprops(numbers)]


def _maps(source: Source) -> dict[str, Path]:
    maps = dict(source.pairs(*IMAGE_SUFFIXES))
    for name, path in maps.items():
        if path is None:
            source.found.append(f"{name}: {source.labels} has no label map of that name")
        elif path.suffix.lower() not in SUFFIXES:
            source.found.append(f"{name}: {path.name} is no label map; JPEG changes values, save PNG or TIFF")
    return {name: path for name, path in maps.items() if path and path.suffix.lower() in SUFFIXES}


def _values(path: Path) -> NDArray[np.integer]:
    pixels = read_label_map(path)
    whole = pixels.astype(np.int32) if pixels.dtype.kind == "f" and np.abs(pixels).max() < 2**31 else pixels
    if (whole != pixels).any() or whole.dtype.kind == "f" or whole.min() < 0:
        raise CompanionError(f"{path} is no label map: its values should be whole numbers from 0")
    return whole


def _region(region: Any, shape: tuple[int, int]) -> dict[str, Any]:
    return {"segmentation": run_lengths(region.image, region.slice, *shape)}
