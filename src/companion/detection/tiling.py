"""A trained detector on whole micrographs: tiles with overlap, merged, measured in nanometres, and written.

This is what ``companion predict`` gives a microscopist: defects as a table, as COCO and drawn on the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from companion.detection import plots
from companion.detection.model import Detector
from companion.detection.predict import predict
from companion.detection.train import Card, load_detector
from companion.errors import CompanionError
from companion.geometry import box_of, decode_rle, encode_rle
from companion.micrographs.images import read_grey, to_uint8
from companion.provenance import atomic, write_json
from companion.training import Device

BOX = ["x1", "y1", "x2", "y2"]
MEASURED = {
    "class": "int64", "score": "float64", "x_px": "float64", "y_px": "float64", **dict.fromkeys(BOX, "float64"),
    "area_px": "int64", "size_px": "float64", "cut": "bool", "mask": "object",
}  # fmt: skip
COLUMNS = ["image", "class", "score", "x_px", "y_px", *BOX, "area_px", "size_px", "size_nm", "cut", "mask"]
_NEAR = 3  # px from its tile's border within which a box is cut by it: boxes of defects that go on end up to there
_SAME = 0.5  # share that two pieces have in common above which they are one defect

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Piece:
    """What one tile shows of a defect, or the union of several.

    Attributes
    ----------
    mask : bool [h, w] where it is not empty, its top left pixel at (x, y) of the micrograph
    label, score : class code and confidence
    tile : box of its tile in the micrograph, px
    cut : whether a border of the tile cuts the defect
    """

    mask: NDArray[np.bool_]
    x: int
    y: int
    label: int
    score: float
    tile: Box
    cut: bool

    @property
    def box(self) -> Box:
        """Of the mask, px of the micrograph."""
        return self.x, self.y, self.x + self.mask.shape[1], self.y + self.mask.shape[0]

    def within(self, box: Box) -> NDArray[np.bool_]:
        """The part of the mask inside a box of the micrograph; empty where they do not meet."""
        x1, y1, x2, y2 = (max(0, edge - start) for edge, start in zip(box, (self.x, self.y) * 2, strict=True))
        return self.mask[y1:y2, x1:x2]


def merge(pieces: list[Piece]) -> list[Piece]:
    """One piece per defect, best score first.

    1. A whole piece beats the cut ones that are alike where both tiles look: their masks have an IoU above a half.
    2. Cut pieces of one class that are alike where both tiles look are parts of one defect, and united.
    3. A cut piece that lies for more than a half in a larger one of its class is a scrap of it. (A loop in another of
       its class stays as long as some tile shows it whole.)
    4. Of pieces with a mask IoU above a half, of any class and tile, the best stays. A dot in a loop has a small IoU
       with it, and stays.
    """
    beaten, alike = set(), []
    for k, near in enumerate(_meeting(pieces)):
        piece = pieces[k]
        for other in near if piece.cut else ():
            a = pieces[other]
            shared, seen = _shared(piece, a), piece.within(a.tile).sum() + a.within(piece.tile).sum()
            if a.tile != piece.tile and shared > _SAME * (seen - shared):
                if not a.cut:
                    beaten.add(k)
                elif a.label == piece.label:
                    alike.append((k, other))
    first, second = np.array([link for link in alike if not beaten & set(link)], dtype=int).reshape(-1, 2).T
    links = coo_array((np.ones(len(first)), (first, second)), shape=(max(1, len(pieces)),) * 2)
    parts: dict[int, list[Piece]] = {}
    for k, group in enumerate(connected_components(links)[1][: len(pieces)]):
        if k not in beaten:
            parts.setdefault(group, []).append(pieces[k])
    pieces = sorted(map(_union, parts.values()), key=lambda piece: -piece.score)
    areas, near = [int(piece.mask.sum()) for piece in pieces], _meeting(pieces)
    shared = [{other: _shared(piece, pieces[other]) for other in near[k]} for k, piece in enumerate(pieces)]
    stays = [
        not (piece.cut and any(
            n > _SAME * areas[k] and areas[other] > areas[k] and pieces[other].label == piece.label
            for other, n in shared[k].items()
        )) for k, piece in enumerate(pieces)
    ]  # fmt: skip
    for k in range(len(pieces)):
        better = ((n, areas[k] + areas[other] - n) for other, n in shared[k].items() if other < k and stays[other])
        stays[k] = stays[k] and not any(n > _SAME * union for n, union in better)
    return [piece for piece, stay in zip(pieces, stays, strict=True) if stay]


def _meeting(pieces: list[Piece]) -> list[list[int]]:
    """For each piece the others whose boxes overlap its own."""
    boxes = np.array([piece.box for piece in pieces], dtype=int).reshape(-1, 4)
    overlap = (((boxes[:, :2] < box[2:]) & (box[:2] < boxes[:, 2:])).all(axis=1) for box in boxes)
    return [[k for k in np.flatnonzero(row).tolist() if k != own] for own, row in enumerate(overlap)]


def _shared(a: Piece, b: Piece) -> int:
    """Pixels that two masks share."""
    x1, y1, x2, y2 = (*map(max, a.box[:2], b.box[:2]), *map(min, a.box[2:], b.box[2:]))
    both = (x1, y1, max(x1, x2), max(y1, y2))
    return int((a.within(both) & b.within(both)).sum())


def _union(pieces: list[Piece]) -> Piece:
    """The union of masks, with the class and the score of the best."""
    boxes = np.array([piece.box for piece in pieces])
    x, y, right, bottom = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    mask = np.zeros((bottom - y, right - x), dtype=bool)
    for piece, (x1, y1, x2, y2) in zip(pieces, boxes, strict=True):
        mask[y1 - y : y2 - y, x1 - x : x2 - x] |= piece.mask
    return replace(max(pieces, key=lambda piece: piece.score), mask=mask, x=x, y=y)


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
    device: Device,
    confidence: float = 0.5,
) -> pd.DataFrame:
    """Defects of one micrograph of any size.

    The micrograph is cut into tiles of the size that the detector was trained on, each half over the next. What several
    tiles show of one defect, or one tile shows twice, is one row (see `merge`).

    Parameters
    ----------
    detector, card : from `load_detector`
    pixels : uint8 [H, W]; smaller ones than a tile are mirrored at their borders
    confidence : smallest score

    Returns
    -------
    A row per defect, by falling score: class (code), score, x_px, y_px (centre of mass), box x1 y1 x2 y2, area_px,
    size_px (full major axis of the ellipse with the same second moments), cut (whether the micrograph's border cuts
    it: its size is a lower bound), mask (COCO compressed run-length bytes of the whole micrograph).
    """
    size = card.patch_size
    height, width = pixels.shape
    padded = np.pad(pixels, ((0, max(0, size - height)), (0, max(0, size - width))), mode="symmetric")
    rows, columns = (tile_starts(length, size, size // 2) for length in padded.shape)
    starts = [(y, x) for y in rows for x in columns]
    tiles = np.stack([padded[y : y + size, x : x + size] for y, x in starts])
    found = predict(detector, tiles, device, suppression="across classes")
    pieces = []
    for row in found[found["score"] >= confidence].itertuples(index=False):
        y, x = starts[row.patch]
        # What lies beyond the micrograph is its mirror image.
        mask = decode_rle([row.mask], (size, size))[0][: height - y, : width - x]
        if not mask.any():
            continue
        # Cut by a border of its tile that is not a border of the micrograph.
        inner = (x > 0, y > 0, x + size < padded.shape[1], y + size < padded.shape[0])
        near = (row.x1 < _NEAR, row.y1 < _NEAR, row.x2 > size - _NEAR, row.y2 > size - _NEAR)
        cut = any(a and b for a, b in zip(inner, near, strict=True))
        x1, y1, x2, y2 = box_of(mask)
        tile = (x, y, x + size, y + size)
        pieces.append(Piece(mask[y1:y2, x1:x2], x + x1, y + y1, int(row.label), float(row.score), tile, cut))
    return _measure(merge(pieces), (height, width))


def _measure(pieces: list[Piece], shape: tuple[int, int]) -> pd.DataFrame:
    rows = []
    for piece in pieces:
        x1, y1, x2, y2 = piece.box
        whole = np.zeros(shape, dtype=bool)
        whole[y1:y2, x1:x2] = piece.mask
        places = np.argwhere(piece.mask)[:, ::-1] + (x1, y1)  # (n, 2)
        # A pixel is a square: its own second moment is 1/12, which keeps one-pixel defects one pixel long.
        moments = np.cov(places.T, bias=True) if len(places) > 1 else np.zeros((2, 2))
        major = 4 * np.sqrt(np.linalg.eigvalsh(moments + np.eye(2) / 12)[-1])
        # Masks of a detector often end one pixel before a border that cuts their defect.
        cut = min(x1, y1, shape[1] - x2, shape[0] - y2) <= 1
        centre, mask = places.mean(axis=0) + 0.5, encode_rle(whole[None])[0]
        rows.append((piece.label, piece.score, *centre, *piece.box, len(places), major, cut, mask))
    return pd.DataFrame(rows, columns=list(MEASURED)).astype(MEASURED)


def predict_micrographs(
    weights: Path,
    images: Sequence[Path],
    device: Device,
    *,
    pixel_size_nm: float | None = None,
    confidence: float = 0.5,
) -> tuple[pd.DataFrame, Card]:
    """Defects of micrographs, by a detector from its weights file.

    Parameters
    ----------
    weights : ``weights.safetensors`` of a detector
    images : 8 or 16-bit grey files
    pixel_size_nm : nm per px; without it sizes are in px alone
    confidence : smallest score

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
    if pixel_size_nm is not None and not pixel_size_nm > 0:
        raise CompanionError(f"pixel size {pixel_size_nm} nm per px is not above 0; leave it out to have px alone")
    pictures = {path: to_uint8(read_grey(path)) for path in map(Path, images)}
    detector, card = load_detector(Path(weights), device)
    tables = []
    for path, pixels in pictures.items():
        table = detect_micrograph(detector, card, pixels, device, confidence=confidence)
        table["size_nm"] = table["size_px"] * (pixel_size_nm or np.nan)
        table["class"] = [card.classes[code - 1] for code in table["class"]]
        table["image"] = str(path)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)[COLUMNS], card


def write_defects(table: pd.DataFrame, classes: Sequence[str], images: Sequence[Path], folder: Path) -> list[Path]:
    """Write ``defects.csv``, ``defects.json`` (COCO) and an overlay per micrograph; returns what was written.

    Parameters
    ----------
    table : of `predict_micrographs`
    classes : names of the class codes 1, 2, ... (`Card.classes`)
    images : the same as there
    """
    pictures = {str(path): to_uint8(read_grey(Path(path))) for path in images}
    numbers = {name: k for k, name in enumerate(pictures, start=1)}
    codes = {name: k for k, name in enumerate(classes, start=1)}
    annotations = [
        {
            "id": k, "image_id": numbers[row["image"]], "category_id": codes[row["class"]], "score": row["score"],
            "bbox": [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]], "area": row["area_px"],
            "iscrowd": 0,
            "segmentation": {"size": list(pictures[row["image"]].shape), "counts": row["mask"].decode("ascii")},
        }
        for k, row in enumerate(table.to_dict("records"), start=1)
    ]  # fmt: skip
    document = {
        "images": [
            {"id": numbers[name], "file_name": Path(name).name, "height": p.shape[0], "width": p.shape[1]}
            for name, p in pictures.items()
        ],
        "categories": [{"id": code, "name": name} for name, code in codes.items()],
        "annotations": annotations,
    }
    written = [folder / "defects.csv", folder / "defects.json"]
    with atomic(written[0]) as temporary:
        table.drop(columns="mask").to_csv(temporary, index=False, float_format="%.4f")
    write_json(written[1], document)
    for name, pixels in pictures.items():
        figure = plots.overlay(pixels, table[table["image"] == name], classes, Path(name).name)
        written.append(folder / f"{Path(name).stem}-overlay.png")
        with atomic(written[-1]) as temporary:
            figure.savefig(temporary, metadata={"Software": None})
        plt.close(figure)  # pyplot would keep the figure of every micrograph
    return written
