"""A trained detector on whole micrographs: tiles with overlap, merged, measured in nanometres, and written.

This is what ``companion predict`` gives a microscopist: defects as a table, as COCO, drawn on the image and as outlines
that ImageJ opens. Of a montage only what was found is kept, tile by tile.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from roifile import ImagejRoi, roiwrite
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import find_contours
from tqdm import tqdm

from companion.detection import plots
from companion.detection.batched import BatchedDetector
from companion.detection.model import Detector
from companion.detection.predict import SAME, predict
from companion.detection.train import load_detector
from companion.device import Device
from companion.errors import problems
from companion.geometry import decode_rle
from companion.micrographs.coco import run_lengths
from companion.micrographs.images import IMAGE_SUFFIXES, read_micrograph, to_uint8
from companion.micrographs.pictures import picture_files
from companion.provenance import atomic, write_json

BOX = ["x1", "y1", "x2", "y2"]
MEASURED = {
    "class": "int64", "score": "float64", "x_px": "float64", "y_px": "float64", **dict.fromkeys(BOX, "float64"),
    "area_px": "int64", "size_px": "float64", "cut": "bool", "mask": "object", "outline": "object",
}  # fmt: skip
COLUMNS = ["image", *MEASURED, "x_nm", "y_nm", "size_nm"]
AT_ONCE = 16  # tiles that a thread looks at before what they show is put away: a batch of `predict`
THREADS = min(os.cpu_count() or 1, 4)
NEAR = 3  # px from its tile's border within which a box is cut by it: boxes of defects that go on end up to there


def tile_starts(length: int, size: int) -> list[int]:
    """First pixels of tiles that cover `length` px, each over at least half of the one before."""
    count = max(1, -(-(length - size // 2) // (size - size // 2)))
    return [round(k * (length - size) / max(1, count - 1)) for k in range(count)]


def detect_micrograph(
    detector: Detector, size: int, pixels: NDArray[np.uint8], device: Device, confidence: float = 0.5,
    callback: Callable[[int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Defects of one micrograph of any size, by tiles; what several of them show of one defect is one row (`merge`).

    Tiles have side `size` px, that of the patches that the detector was trained on; `pixels`, uint8 [H, W], smaller
    than one are mirrored at their borders. `confidence` is the smallest score. `callback` gets numbers of tiles as they
    are done.

    Returns
    -------
    A row per defect, by falling score: class (code), score, x_px, y_px (centre of mass), box x1 y1 x2 y2, area_px,
    size_px (full major axis of the ellipse with the same second moments), cut (whether the micrograph's border cuts
    it: its size is a lower bound), mask (COCO compressed run-length bytes of the whole micrograph), outline (a list of
    rings, [n, 2] x and y in px).
    """
    height, width = pixels.shape
    padded = np.pad(pixels, ((0, max(0, size - height)), (0, max(0, size - width))), mode="symmetric")
    rows, columns = (np.array(tile_starts(length, size)) for length in padded.shape)
    starts, tables, places = np.array([(x, y) for y in rows for x in columns]), [], []

    def look(first: int) -> pd.DataFrame:
        tiles = np.stack([padded[y : y + size, x : x + size] for x, y in starts[first : first + AT_ONCE]])
        found = predict(detector, tiles, device, suppression="across classes")
        return found[found["score"] >= confidence].assign(patch=lambda table: table["patch"] + first)

    with ThreadPoolExecutor(THREADS if device.torch.type == "cpu" else 1) as pool:
        for found in pool.map(look, range(0, len(starts), AT_ONCE)):
            masks = decode_rle(found["mask"].tolist(), (size, size))
            for (x, y), mask in zip(starts[found["patch"]], masks, strict=True):
                v, u = np.nonzero(mask[: height - y, : width - x])  # beyond is the mirror image
                places.append((y + v) * width + x + u)
            tables.append(found.drop(columns="mask"))
            if callback:
                callback(min(AT_ONCE, len(starts) - AT_ONCE * (len(tables) - 1)))
    found = pd.concat(tables, ignore_index=True)
    # Cut by a border of its tile that is not a border of the micrograph.
    corner, box = starts[found["patch"]], found[BOX].to_numpy()
    low, high = (box[:, :2] < NEAR) & (corner > 0), (box[:, 2:] > size - NEAR) & (corner + size < padded.shape[::-1])
    found["cut"] = (low | high).any(axis=1)
    ends = np.cumsum([0, *map(len, places)])
    pixel, column = np.unique(np.concatenate([*places, ends[:0]]), return_inverse=True)  # those of any piece
    masks = csr_array((np.ones(ends[-1], dtype=int), column, ends), shape=(len(found), len(pixel)))

    def looked(piece: int, other: int) -> int:
        """Pixels of a piece that lie in the tile of another one."""
        x, y = corner[other]
        v, u = np.divmod(places[piece], width)
        return np.count_nonzero((y <= v) & (v < y + size) & (x <= u) & (u < x + size))

    merged, masks = merge(found, masks, looked)
    parts = zip(merged["label"], merged["score"], np.split(masks.indices, masks.indptr[1:-1]), strict=False)
    measured = [(label, score, *_measured(*np.divmod(np.sort(pixel[part]), width), height, width))
                for label, score, part in parts if len(part)]  # none: all of it is in the mirror image  # fmt: skip
    return pd.DataFrame(measured, columns=list(MEASURED)).astype(MEASURED)


def _measured(y: NDArray[np.int64], x: NDArray[np.int64], height: int, width: int) -> tuple:
    """What `detect_micrograph` says of the defect of these pixels, from x_px on."""
    x1, y1, x2, y2 = x.min(), y.min(), x.max() + 1, y.max() + 1
    # A pixel is a square: its own second moment is 1/12, which keeps one-pixel defects one pixel long.
    major = 4 * np.sqrt(np.linalg.eigvalsh(np.cov(x, y, bias=True) + np.eye(2) / 12)[-1])
    # Masks of a detector often end one pixel before a border that cuts their defect.
    cut, centre = min(x1, y1, width - x2, height - y2) <= 1, (x.mean() + 0.5, y.mean() + 0.5)
    window = np.zeros((y2 - y1 + 2, x2 - x1 + 2))
    window[y - y1 + 1, x - x1 + 1] = 1
    outline = [ring[:, ::-1] + (x1 - 0.5, y1 - 0.5) for ring in find_contours(window, 0.5)]
    mask = run_lengths(window[1:-1, 1:-1] > 0, (slice(y1, y2), slice(x1, x2)), height, width)
    return *centre, x1, y1, x2, y2, len(x), major, cut, mask["counts"].encode("ascii"), outline


def merge(found: pd.DataFrame, masks: csr_array, looked: Callable[[int, int], int]) -> tuple[pd.DataFrame, csr_array]:
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
    masks : [N, pixels], 1 inside each piece
    looked : of the numbers of two pieces, px of the first that lie in the tile of the second

    Returns
    -------
    Rows of `found` (of united pieces the best one's) and the masks of the defects.
    """
    cut, label, tile = (found[name].to_numpy() for name in ("cut", "label", "patch"))
    pairs = _pairs(masks)
    a, b, shared = pairs[:, (tile[pairs[0]] != tile[pairs[1]]) & cut[pairs[0]]]
    both = np.array([looked(i, j) + looked(j, i) for i, j in zip(a, b, strict=True)]) - shared  # px of either there
    alike = shared > SAME * both
    beaten = np.isin(np.arange(len(found)), a[alike & ~cut[b]])
    parts = alike & cut[b] & (label[a] == label[b]) & ~beaten[a] & ~beaten[b]
    links = coo_array((parts[parts], (a[parts], b[parts])), shape=(len(found),) * 2)
    group = connected_components(links)[1] if len(found) else np.zeros(0, dtype=int)
    best = found.assign(group=group)[~beaten].sort_values("score", ascending=False, kind="stable")
    best = best.drop_duplicates("group")
    row = np.full(len(found), -1)
    row[best["group"]] = np.arange(len(best))
    row, kept = row[group], np.flatnonzero(row[group] >= 0)
    masks = csr_array((np.ones(len(kept), dtype=int), (row[kept], kept)), shape=(len(best), len(found))) @ masks
    masks.data[:] = 1  # pixels of several pieces are one
    cut, label, area = best["cut"].to_numpy(), best["label"].to_numpy(), masks.sum(axis=1)
    a, b, shared = _pairs(masks)
    scrap = cut[a] & (label[a] == label[b]) & (area[a] < area[b]) & (shared > SAME * area[a])
    stays = ~np.isin(np.arange(len(best)), a[scrap])
    same = (shared > SAME * (area[a] + area[b] - shared)) & (b < a)
    for worse, better in zip(a[same], b[same], strict=True):  # by rising `worse`: `better` is settled
        stays[worse] &= not stays[better]
    return best[stays], masks[stays]


def _pairs(masks: csr_array) -> NDArray[np.int64]:
    """Numbers of the masks that meet, every pair both ways round and by rising first number, and pixels they share."""
    shared = (masks @ masks.T).tocoo()
    pairs = np.stack([shared.row, shared.col, shared.data])[:, shared.row != shared.col]
    return pairs[:, np.lexsort(pairs[1::-1])]


def micrograph_files(given: Sequence[Path], skip: Path) -> dict[str, Path]:
    """Files by name: of a folder those in it and below, named from there, without those (or overlays) in `skip`."""
    files, found = {}, []
    for path in given:
        inside = picture_files(path, skip) if path.is_dir() else {path.name: path}
        inside = {n: f for n, f in inside.items() if not (f.stem.endswith("-overlay") and f.is_relative_to(skip))}
        if not inside:
            found.append(f"{path} has no micrographs ({', '.join(IMAGE_SUFFIXES)})")
        for name, file in inside.items():
            if (stem := name.removesuffix(file.suffix)) in files:
                found.append(f"several micrographs are called {stem}: their overlays would be one file")
            files[stem] = (name, file)
    if found:
        raise problems("micrographs that cannot be used", found)
    return dict(files.values())


def predict_micrographs(
    weights: Path, images: Sequence[Path], device: Device, folder: Path, *, pixel_size_nm: float | None = None,
    confidence: float = 0.5, crop_bottom: int | str = 0,
) -> tuple[pd.DataFrame, list[Path]]:  # fmt: skip
    """Defects of micrographs; writes ``defects.csv``, ``defects.json`` (COCO), and per micrograph an overlay and,
    where it has defects, their outlines for ImageJ (``.zip``).

    Parameters
    ----------
    weights : ``weights.safetensors`` of a detector
    images : micrographs as `read_micrograph` takes them, and folders of them
    folder : where to write; nothing is written if a file cannot be used
    pixel_size_nm : nm per px, whatever the files state; where neither says it, sizes are in px alone
    confidence : smallest score
    crop_bottom : rows to leave out, see `read_micrograph`

    Returns
    -------
    Table with `COLUMNS`, a row per defect (image is the file's name, class a name), and the files written.
    """
    files = micrograph_files([Path(path) for path in images], folder)
    shapes, scales = {}, {}
    for name, path in files.items():  # one in memory at a time
        picture = read_micrograph(path, crop_bottom)
        shapes[name], stated = picture.pixels.shape, picture.pixel_size_nm
        scales[name] = pixel_size_nm or stated
        notes = picture.notes
        if pixel_size_nm and stated and abs(stated / pixel_size_nm - 1) > 0.01:
            notes = (*notes, f"it states {stated:g} nm per px, {pixel_size_nm:g} is used")
        for note in notes:
            print(f"{name}: {note}", file=sys.stderr)
    detector, about = load_detector(Path(weights), device)
    if isinstance(detector, BatchedDetector):  # a third of the time goes into masks of what would not count
        roi = detector.network.roi_heads
        roi.score_thresh = max(roi.score_thresh, confidence - 1e-6)
    classes, size = dict(enumerate(about["classes"], start=1)), about["patch_size"]
    total = sum(prod(len(tile_starts(max(side, size), size)) for side in shape) for shape in shapes.values())
    progress = tqdm(total=total, desc="tiles", mininterval=2)
    tables, written = [], [folder / "defects.csv", folder / "defects.json"]
    for name, path in files.items():
        pixels = to_uint8(read_micrograph(path, crop_bottom).pixels)
        table = detect_micrograph(detector, size, pixels, device, confidence, progress.update)
        table["class"] = table["class"].map(classes)
        figure = plots.overlay(pixels, table, about["classes"])
        written.append((folder / name).with_name(f"{path.stem}-overlay.png"))
        with atomic(written[-1]) as temporary:
            figure.savefig(temporary, metadata={"Software": None})
        plt.close(figure)  # pyplot would keep the figure of every micrograph
        rois = [ImagejRoi.frompoints(max(row.outline, key=len), name=f"{row[1]} {k} {row.score:.2f}")
                for k, row in enumerate(table.itertuples(), start=1)]  # fmt: skip
        written[-1].with_name(f"{path.stem}.zip").unlink(missing_ok=True)  # of an earlier run
        if rois:
            written.append(written[-1].with_name(f"{path.stem}.zip"))
            with atomic(written[-1]) as temporary:
                roiwrite(temporary, rois, mode="w")
        tables.append(table.assign(image=name))
    table = pd.concat(tables, ignore_index=True)
    for name in ("x", "y", "size"):
        table[f"{name}_nm"] = table[f"{name}_px"] * table["image"].map(scales).astype(float)
    with atomic(written[0]) as temporary:
        table[COLUMNS].drop(columns=["mask", "outline"]).to_csv(temporary, index=False, float_format="%.4f")
    write_json(written[1], coco_document(table, shapes, classes, scales))
    return table[COLUMNS], written


def coco_document(
    table: pd.DataFrame, shapes: dict[str, tuple[int, int]], classes: dict[int, str], scales: dict[str, float | None]
) -> dict[str, list]:
    """Defects as COCO instances with scores; `shapes` are height and width of each, px, `scales` its nm per px."""
    ids, codes = {name: k for k, name in enumerate(shapes, start=1)}, {name: code for code, name in classes.items()}
    images = [{"id": ids[name], "file_name": name, "height": height, "width": width, "pixel_size_nm": scales[name]}
              for name, (height, width) in shapes.items()]  # fmt: skip
    annotations = [
        {"id": k, "image_id": ids[row["image"]], "category_id": codes[row["class"]], "score": row["score"],
         "bbox": [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]], "area": row["area_px"],
         "iscrowd": 0, "segmentation": {"size": list(shapes[row["image"]]), "counts": row["mask"].decode("ascii")}}
        for k, row in enumerate(table.to_dict("records"), start=1)
    ]  # fmt: skip
    categories = [{"id": code, "name": name} for code, name in classes.items()]
    return {"images": images, "categories": categories, "annotations": annotations}
