"""A trained detector on whole micrographs: tiles with overlap, merged, measured in nanometres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.micrographs.images import read_grey, to_uint8
from companion.detection.merging import Piece, merge, piece_of
from companion.detection.model import Detector
from companion.detection.predict import predict
from companion.detection.train import Card, load_detector
from companion.errors import CompanionError
from companion.geometry import decode_rle
from companion.training import Compute

BOX = ["x1", "y1", "x2", "y2"]
COLUMNS = ["image", "class", "score", "x_px", "y_px", *BOX, "area_px", "size_px", "size_nm", "cut", "mask"]
_NEAR = 3  # px from its tile's border within which a box is cut by it: boxes of defects that go on end up to there


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """First pixels of tiles that cover `length` px, neighbours overlapping by at least `overlap` px."""
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(k * (length - size) / (count - 1)) for k in range(count)]


def detect_micrograph(
    detector: Detector,
    card: Card,
    pixels: NDArray[np.uint8],
    compute: Compute,
    *,
    confidence: float = 0.5,
    overlap: float = 0.5,
) -> pd.DataFrame:
    """Defects of one micrograph of any size.

    The micrograph is cut into tiles of the size that the detector was trained on. What several tiles show of one
    defect, or one tile shows twice, is one row (see `merge`).

    Parameters
    ----------
    detector, card : from `load_detector`
    pixels : uint8 [H, W]; smaller ones than a tile are mirrored at their borders
    confidence : smallest score
    overlap : share of a tile that neighbouring tiles share

    Returns
    -------
    A row per defect, by falling score: class (code), score, box x1 y1 x2 y2, x_px, y_px (centre of mass), area_px,
    size_px (full major axis of the ellipse with the same second moments), cut (whether the micrograph's border cuts
    it: its size is a lower bound), mask (COCO compressed run-length bytes of the whole micrograph).
    """
    size = card.patch_size
    height, width = pixels.shape
    padded = np.pad(pixels, ((0, max(0, size - height)), (0, max(0, size - width))), mode="symmetric")
    starts = [
        (y, x)
        for y in tile_starts(padded.shape[0], size, int(overlap * size))
        for x in tile_starts(padded.shape[1], size, int(overlap * size))
    ]
    tiles = np.stack([padded[y : y + size, x : x + size] for y, x in starts])
    found = predict(detector, tiles, compute)
    found = found[found["score"] >= confidence]
    pieces: list[Piece] = []
    for row in found.itertuples(index=False):
        y, x = starts[row.patch]
        # What lies beyond the micrograph is its mirror image.
        mask = decode_rle([row.mask], (size, size))[0][: height - y, : width - x]
        if not mask.any():
            continue
        # Cut by a border of its tile that is not a border of the micrograph.
        inner = (x > 0, y > 0, x + size < padded.shape[1], y + size < padded.shape[0])
        near = (row.x1 < _NEAR, row.y1 < _NEAR, row.x2 > size - _NEAR, row.y2 > size - _NEAR)
        cut = any(a and b for a, b in zip(inner, near, strict=True))
        pieces.append(piece_of(mask, x, y, int(row.label), float(row.score), (x, y, x + size, y + size), cut))
    return _measure(merge(pieces), (height, width))


def _run_lengths(x: NDArray[np.intp], y: NDArray[np.intp], shape: tuple[int, int]) -> bytes:
    """COCO compressed run-length bytes of the pixels (x, y) of an image of `shape`, which is never made."""
    from pycocotools import mask as coco

    places = np.sort(x * shape[0] + y)  # COCO counts down the columns
    breaks = np.flatnonzero(np.diff(places) > 1)
    starts, ends = places[np.r_[0, breaks + 1]], places[np.r_[breaks, len(places) - 1]] + 1
    edges = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [shape[0] * shape[1]]])
    counts = np.diff(edges).tolist()
    if counts[-1] == 0:  # COCO ends with the last run
        counts.pop()
    return coco.frPyObjects({"size": list(shape), "counts": counts}, *shape)["counts"]


def _measure(pieces: list[Piece], shape: tuple[int, int]) -> pd.DataFrame:
    rows = []
    for piece in pieces:
        y, x = np.nonzero(piece.mask)
        y, x = y + piece.y, x + piece.x
        # A pixel is a square: its own second moment is 1/12, which keeps one-pixel defects one pixel long.
        moments = np.cov(np.stack([x, y]), bias=True) if len(x) > 1 else np.zeros((2, 2))
        major = 4 * np.sqrt(np.linalg.eigvalsh(moments + np.eye(2) / 12)[-1])
        # Masks of a detector often end one pixel before a border that cuts their defect.
        cut = min(piece.x, piece.y, shape[1] - piece.box[2], shape[0] - piece.box[3]) <= 1
        centre, box, rle = (x.mean() + 0.5, y.mean() + 0.5), map(float, piece.box), _run_lengths(x, y, shape)
        rows.append((piece.label, piece.score, *centre, *box, len(x), major, cut, rle))
    names = [name for name in COLUMNS if name not in ("image", "size_nm")]
    # Types are given, so that a micrograph without defects has those of any other.
    types = dict.fromkeys(names, "float64") | {"class": "int64", "area_px": "int64", "cut": "bool", "mask": "object"}
    return pd.DataFrame(rows, columns=names).astype(types)


def predict_micrographs(
    weights: Path,
    images: Sequence[Path],
    compute: Compute,
    *,
    pixel_size_nm: float | Mapping[str, float] | None = None,
    confidence: float = 0.5,
) -> tuple[pd.DataFrame, Card]:
    """Defects of micrographs, by a detector from its weights file.

    Parameters
    ----------
    weights : ``weights.safetensors`` of a detector stage
    images : 8 or 16-bit grey files
    pixel_size_nm : nm per px, one for all or by file name; without it sizes are in px alone

    Returns
    -------
    Table with `COLUMNS`, a row per defect (class is a name), and the detector's card.

    Raises
    ------
    CompanionError
        A file is not a grey image, two have one name, a pixel size is not positive, or the weights are not a
        detector's; nothing has been written then.
    """
    if not images:
        raise CompanionError("no micrographs were given")
    stems = [Path(path).stem for path in images]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise CompanionError(f"several micrographs are called {', '.join(twice)}: their overlays would be one file")
    scales = pixel_size_nm.values() if isinstance(pixel_size_nm, Mapping) else [pixel_size_nm]
    if wrong := [scale for scale in scales if scale is not None and not scale > 0]:
        raise CompanionError(f"pixel size {wrong[0]} nm per px is not above 0; leave it out to have sizes in px alone")
    pictures = {path: to_uint8(read_grey(path)) for path in map(Path, images)}
    detector, card = load_detector(Path(weights), compute)
    tables = []
    for path, pixels in pictures.items():
        table = detect_micrograph(detector, card, pixels, compute, confidence=confidence)
        scale = pixel_size_nm.get(path.name) if isinstance(pixel_size_nm, Mapping) else pixel_size_nm
        table["size_nm"] = table["size_px"] * (scale or np.nan)
        table["class"] = [card.classes[code - 1] for code in table["class"]]
        table["image"] = str(path)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)[COLUMNS], card
