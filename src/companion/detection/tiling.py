"""A trained detector on whole micrographs: tiles with overlap, merged, measured in nanometres, and written.

This is what ``companion predict`` gives a microscopist: defects as a table, as COCO and drawn on the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from companion.detection import plots
from companion.detection.model import Detector
from companion.detection.predict import SAME, predict
from companion.detection.train import load_detector
from companion.device import Device
from companion.errors import CompanionError
from companion.geometry import box_of, decode_rle, encode_rle
from companion.micrographs.images import read_grey, to_uint8
from companion.provenance import atomic, write_json

BOX = ["x1", "y1", "x2", "y2"]
MEASURED = {
    "class": "int64", "score": "float64", "x_px": "float64", "y_px": "float64", **dict.fromkeys(BOX, "float64"),
    "area_px": "int64", "size_px": "float64", "cut": "bool", "mask": "object",
}  # fmt: skip
COLUMNS = ["image", "class", "score", "x_px", "y_px", *BOX, "area_px", "size_px", "size_nm", "cut", "mask"]
NEAR = 3  # px from its tile's border within which a box is cut by it: boxes of defects that go on end up to there


def tile_starts(length: int, size: int) -> list[int]:
    """First pixels of tiles that cover `length` px, each over at least half of the one before."""
    count = max(1, -(-(length - size // 2) // (size - size // 2)))
    return [round(k * (length - size) / max(1, count - 1)) for k in range(count)]


def detect_micrograph(
    detector: Detector, size: int, pixels: NDArray[np.uint8], device: Device, confidence: float = 0.5
) -> pd.DataFrame:
    """Defects of one micrograph of any size, by tiles; what several of them show of one defect is one row (`merge`).

    Tiles have side `size` px, that of the patches that the detector was trained on; `pixels`, uint8 [H, W], smaller
    than one are mirrored at their borders. `confidence` is the smallest score.

    Returns
    -------
    A row per defect, by falling score: class (code), score, x_px, y_px (centre of mass), box x1 y1 x2 y2, area_px,
    size_px (full major axis of the ellipse with the same second moments), cut (whether the micrograph's border cuts
    it: its size is a lower bound), mask (COCO compressed run-length bytes of the whole micrograph).
    """
    height, width = pixels.shape
    padded = np.pad(pixels, ((0, max(0, size - height)), (0, max(0, size - width))), mode="symmetric")
    rows, columns = (tile_starts(length, size) for length in padded.shape)
    starts = np.array([(x, y) for y in rows for x in columns])
    tiles = np.stack([padded[y : y + size, x : x + size] for x, y in starts])
    found = predict(detector, tiles, device, suppression="across classes")
    found = found[found["score"] >= confidence].reset_index(drop=True)
    numbers = np.arange(height * width).reshape(height, width)  # of the pixels; beyond them is their mirror image
    seen = [numbers[y : y + size, x : x + size] for x, y in starts]
    masks = decode_rle(found["mask"].tolist(), (size, size))
    masks = [seen[tile][mask[: height - starts[tile, 1], : width - starts[tile, 0]]]
             for tile, mask in zip(found["patch"], masks, strict=True)]  # fmt: skip
    # Cut by a border of its tile that is not a border of the micrograph.
    corner, box = starts[found["patch"]], found[BOX].to_numpy()
    low, high = (box[:, :2] < NEAR) & (corner > 0), (box[:, 2:] > size - NEAR) & (corner + size < padded.shape[::-1])
    found["cut"] = (low | high).any(axis=1)
    merged, masks = merge(found, _matrix(masks, numbers.size), _matrix([s.ravel() for s in seen], numbers.size))
    rows = []
    for label, score, places in zip(merged["label"], merged["score"], np.split(masks.indices, masks.indptr[1:-1]),
                                    strict=False):  # fmt: skip
        if len(places) == 0:  # all of it in the mirror image
            continue
        mask = np.zeros((height, width), dtype=bool)
        mask.flat[places] = True
        x1, y1, x2, y2 = box_of(mask)
        y, x = np.divmod(places, width)
        # A pixel is a square: its own second moment is 1/12, which keeps one-pixel defects one pixel long.
        major = 4 * np.sqrt(np.linalg.eigvalsh(np.cov(x, y, bias=True) + np.eye(2) / 12)[-1])
        # Masks of a detector often end one pixel before a border that cuts their defect.
        cut, centre = min(x1, y1, width - x2, height - y2) <= 1, (x.mean() + 0.5, y.mean() + 0.5)
        rows.append((label, score, *centre, x1, y1, x2, y2, len(places), major, cut, encode_rle(mask[None])[0]))
    return pd.DataFrame(rows, columns=list(MEASURED)).astype(MEASURED)


def merge(found: pd.DataFrame, masks: csr_array, tiles: csr_array) -> tuple[pd.DataFrame, csr_array]:
    """One row per defect, best score first, of the pieces that tiles show.

    1. A whole piece beats the cut ones that are alike where both tiles look: their masks have an IoU above a half.
    2. Cut pieces of one class that are alike where both tiles look are parts of one defect, and united.
    3. A cut piece that lies for more than a half in a larger one of its class is a scrap of it. (A loop in another of
       its class stays as long as some tile shows it whole.)
    4. Of pieces with a mask IoU above a half, of any class and tile, the best stays. A dot in a loop has a small IoU
       with it, and stays.

    Parameters
    ----------
    found : patch (number of the tile), label, score, cut (whether a border of the tile cuts it)
    masks : [N, pixels of the micrograph], 1 inside each piece
    tiles : [T, pixels of the micrograph], 1 inside each tile

    Returns
    -------
    Rows of `found` (of united pieces the best one's) and the masks of the defects.
    """
    cut, label, tile = (found[name].to_numpy() for name in ("cut", "label", "patch"))
    a, b, shared = _pairs(masks)
    looked = (masks @ tiles.T).toarray()  # (N, T), px
    alike = (tile[a] != tile[b]) & (shared > SAME * (looked[a, tile[b]] + looked[b, tile[a]] - shared)) & cut[a]
    beaten = np.isin(np.arange(len(found)), a[alike & ~cut[b]])
    parts = alike & cut[b] & (label[a] == label[b]) & ~beaten[a] & ~beaten[b]
    links = coo_array((parts[parts], (a[parts], b[parts])), shape=(len(found),) * 2)
    group = connected_components(links)[1] if len(found) else np.zeros(0, dtype=int)
    best = found.assign(group=group)[~beaten].sort_values("score", ascending=False, kind="stable")
    best = best.drop_duplicates("group")
    masks = csr_array((best["group"].to_numpy()[:, None] == group).astype(int)) @ masks
    masks.data[:] = 1  # pixels of several pieces are one
    cut, label, area = best["cut"].to_numpy(), best["label"].to_numpy(), masks.sum(axis=1)
    a, b, shared = _pairs(masks)
    scrap = cut[a] & (label[a] == label[b]) & (area[a] < area[b]) & (shared > SAME * area[a])
    stays = ~np.isin(np.arange(len(best)), a[scrap])
    same = (shared > SAME * (area[a] + area[b] - shared)) & (b < a)
    for worse, better in zip(a[same], b[same], strict=True):  # by rising `worse`: `better` is settled
        stays[worse] &= not stays[better]
    return best[stays], masks[stays]


def _matrix(places: Sequence[NDArray[np.int64]], size: int) -> csr_array:
    """Sparse [N, size], 1 at the places of each row."""
    ends = np.cumsum([0, *map(len, places)])
    return csr_array((np.ones(ends[-1], dtype=int), np.concatenate([*places, ends[:0]]), ends), (len(places), size))


def _pairs(masks: csr_array) -> tuple[NDArray, NDArray, NDArray]:
    """Numbers of the masks that meet, every pair both ways round and by rising first number, and pixels they share."""
    shared = (masks @ masks.T).tocoo()
    other = shared.row != shared.col
    a, b, n = shared.row[other], shared.col[other], shared.data[other]
    order = np.lexsort((b, a))
    return a[order], b[order], n[order]


def predict_micrographs(
    weights: Path,
    images: Sequence[Path],
    device: Device,
    folder: Path,
    *,
    pixel_size_nm: float | None = None,
    confidence: float = 0.5,
) -> tuple[pd.DataFrame, list[Path]]:
    """Defects of micrographs; writes ``defects.csv``, ``defects.json`` (COCO) and an overlay per micrograph.

    Parameters
    ----------
    weights : ``weights.safetensors`` of a detector
    images : 8 or 16-bit grey files
    folder : where to write; nothing is written if a file cannot be used
    pixel_size_nm : nm per px; without it sizes are in px alone
    confidence : smallest score

    Returns
    -------
    Table with `COLUMNS`, a row per defect (class is a name), and the files written.
    """
    stems = [Path(path).stem for path in images]
    if len(set(stems)) < len(stems):
        twice = ", ".join(sorted({stem for stem in stems if stems.count(stem) > 1}))
        raise CompanionError(f"several micrographs are called {twice}: their overlays would be one file")
    pictures = {path: to_uint8(read_grey(path)) for path in map(Path, images)}
    detector, about = load_detector(Path(weights), device)
    classes = dict(enumerate(about["classes"], start=1))
    tables = [detect_micrograph(detector, about["patch_size"], p, device, confidence) for p in pictures.values()]
    table = pd.concat(tables, keys=map(str, pictures), names=["image"]).reset_index("image").reset_index(drop=True)
    coco = {
        "images": [
            {"id": k, "file_name": path.name, "height": p.shape[0], "width": p.shape[1]}
            for k, (path, p) in enumerate(pictures.items(), start=1)
        ],
        "categories": [{"id": code, "name": name} for code, name in classes.items()],
        "annotations": [
            {
                "id": k, "image_id": list(map(str, pictures)).index(row["image"]) + 1, "category_id": row["class"],
                "score": row["score"], "bbox": [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]],
                "area": row["area_px"], "iscrowd": 0,
                "segmentation": {
                    "size": list(pictures[Path(row["image"])].shape), "counts": row["mask"].decode("ascii")
                },
            }
            for k, row in enumerate(table.to_dict("records"), start=1)
        ],
    }  # fmt: skip
    table["size_nm"], table["class"] = table["size_px"] * (pixel_size_nm or np.nan), table["class"].map(classes)
    table, written = table[COLUMNS], [folder / "defects.csv", folder / "defects.json"]
    with atomic(written[0]) as temporary:
        table.drop(columns="mask").to_csv(temporary, index=False, float_format="%.4f")
    write_json(written[1], coco)
    for path, pixels in pictures.items():
        figure = plots.overlay(pixels, table[table["image"] == str(path)], list(classes.values()), path.name)
        written.append(folder / f"{path.stem}-overlay.png")
        with atomic(written[-1]) as temporary:
            figure.savefig(temporary, metadata={"Software": None})
        plt.close(figure)  # pyplot would keep the figure of every micrograph
    return table, written
