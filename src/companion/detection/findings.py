"""What a microscopist takes home: defects of micrographs as a table, as COCO and drawn on the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from companion.micrographs.images import read_grey, to_uint8
from companion.detection.train import Card
from companion.plots import detection as figures
from companion.provenance import atomic, write_json


def write_findings(table: pd.DataFrame, card: Card, images: Sequence[Path], folder: Path) -> list[Path]:
    """Write ``defects.csv``, ``defects.json`` (COCO) and an overlay per micrograph; returns what was written."""
    pictures = {str(path): to_uint8(read_grey(Path(path))) for path in images}
    numbers = {name: k for k, name in enumerate(pictures, start=1)}
    codes = {name: k for k, name in enumerate(card.classes, start=1)}
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
        figure = figures.overlay(pixels, table[table["image"] == name], card.classes, Path(name).name)
        written.append(folder / f"{Path(name).stem}-overlay.png")
        with atomic(written[-1]) as temporary:
            figure.savefig(temporary, metadata={"Software": None})
        plt.close(figure)  # pyplot would keep the figure of every micrograph
    return written
