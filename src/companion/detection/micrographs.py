"""A trained detector on whole micrographs: tiles with overlap, merged, measured in nanometres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.data.pixels import read_grey, to_uint8
from companion.detection.model import Detector
from companion.detection.predict import predict
from companion.detection.train import Card, load_detector
from companion.errors import CompanionError
from companion.geometry import box_of, decode_rle
from companion.training import Compute

COLUMNS = ["image", "class", "score", "x_px", "y_px", "x1", "y1", "x2", "y2", "area_px", "size_px", "size_nm", "mask"]
_SAME = 0.5  # share of the smaller mask that two detections share when they are one defect


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

    The micrograph is cut into tiles of the size that the detector was trained on. A defect that lies in several
    tiles is taken from the one in which it is most complete; two detections that share half of the smaller mask
    are one defect.

    Parameters
    ----------
    detector, card : from `load_detector`
    pixels : uint8 [H, W]; smaller ones than a tile are mirrored at their borders
    confidence : smallest score
    overlap : share of a tile that neighbouring tiles share

    Returns
    -------
    Rows with patch-free columns: class (code), score, box x1 y1 x2 y2, x_px, y_px (centre of mass), area_px,
    size_px (full major axis of the ellipse with the same second moments), mask (COCO compressed run-length bytes
    of the whole micrograph).
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
    cut = np.zeros(len(found), dtype=bool)
    for place, row in enumerate(found.itertuples(index=False)):
        y, x = starts[row.patch]
        # What lies beyond the micrograph is its mirror image.
        pieces.append(_piece(decode_rle([row.mask], (size, size))[0][: height - y, : width - x], y, x))
        # Cut by a border of its tile that is not a border of the micrograph.
        inner = (x > 0, y > 0, x + size < padded.shape[1], y + size < padded.shape[0])
        touches = (row.x1 < 1, row.y1 < 1, row.x2 > size - 1, row.y2 > size - 1)
        cut[place] = any(a and b for a, b in zip(inner, touches, strict=True))
    scores = found["score"].to_numpy()
    kept = _merge(pieces, np.lexsort((-scores, cut)))
    return _measure([pieces[k] for k in kept], found["label"].to_numpy()[kept], scores[kept], (height, width))


@dataclass(frozen=True)
class Piece:
    """A mask where it is not empty: bool [h, w], its top left pixel at (x, y) of the micrograph."""

    mask: NDArray[np.bool_]
    x: int
    y: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.x, self.y, self.x + self.mask.shape[1], self.y + self.mask.shape[0]


def _piece(mask: NDArray[np.bool_], y: int, x: int) -> Piece:
    x1, y1, x2, y2 = box_of(mask)
    return Piece(mask[y1:y2, x1:x2].copy(), x + x1, y + y1)


def _shared(a: Piece, b: Piece) -> int:
    """Pixels that two masks share."""
    x1, y1 = max(a.x, b.x), max(a.y, b.y)
    x2, y2 = min(a.box[2], b.box[2]), min(a.box[3], b.box[3])
    of_a, of_b = (piece.mask[y1 - piece.y : y2 - piece.y, x1 - piece.x : x2 - piece.x] for piece in (a, b))
    return int((of_a & of_b).sum())


def _merge(pieces: list[Piece], order: NDArray[np.intp]) -> list[int]:
    """Detections that are not another one again, the best in `order` first."""
    kept: list[int] = []
    areas = [int(piece.mask.sum()) for piece in pieces]
    boxes = np.array([piece.box for piece in pieces], dtype=int).reshape(-1, 4)
    for k in order:
        if areas[k] == 0:
            continue
        x1, y1, x2, y2 = boxes[kept].T
        near = (x1 < boxes[k, 2]) & (boxes[k, 0] < x2) & (y1 < boxes[k, 3]) & (boxes[k, 1] < y2)
        others = (kept[place] for place in np.flatnonzero(near))
        if not any(_shared(pieces[other], pieces[k]) > _SAME * min(areas[other], areas[k]) for other in others):
            kept.append(int(k))
    return kept


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


def _measure(pieces: list[Piece], labels: NDArray, scores: NDArray, shape: tuple[int, int]) -> pd.DataFrame:
    rows = []
    for piece, label, score in zip(pieces, labels, scores, strict=True):
        y, x = np.nonzero(piece.mask)
        y, x = y + piece.y, x + piece.x
        # A pixel is a square: its own second moment is 1/12, which keeps one-pixel defects one pixel long.
        moments = np.cov(np.stack([x, y]), bias=True) if len(x) > 1 else np.zeros((2, 2))
        major = 4 * np.sqrt(np.linalg.eigvalsh(moments + np.eye(2) / 12)[-1])
        rle = _run_lengths(x, y, shape)
        box = map(float, piece.box)
        rows.append((int(label), float(score), x.mean() + 0.5, y.mean() + 0.5, *box, len(x), major, rle))
    names = ["class", "score", "x_px", "y_px", "x1", "y1", "x2", "y2", "area_px", "size_px", "mask"]
    # Types are given, so that a micrograph without defects has those of any other.
    types = dict.fromkeys(names, "float64") | {"class": "int64", "area_px": "int64", "mask": "object"}
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
