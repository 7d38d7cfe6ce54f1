"""A phantom data set folder: scenes drawn, imaged and labelled, with the perfect truth kept beside the labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from companion.config.phantom import Phantom
from companion.geometry import box_of, encode_rle
from companion.phantom.annotator import Label, annotate, truth
from companion.phantom.optics import image
from companion.phantom.scene import CLASSES, draw_scene
from companion.provenance import atomic, write_json
from companion.seeds import Seeds

TRUTH = "truth.json"


def render_dataset(phantom: Phantom, root_seed: int, folder: Path) -> None:
    """Write a data set folder of simulated micrographs.

    ``annotations.json`` holds what the annotator drew. ``truth.json``, of the same format, holds every defect,
    with its parameters and the id of its label (null where it was overlooked); `load_dataset` reads either.
    Each image has its own generators, by number: the first images of a larger set are those of a smaller one.
    """
    seeds = Seeds(root_seed, "phantom")
    images, labels, defects = [], [], []
    for number in range(1, phantom.n_images + 1):
        scene = draw_scene(phantom, seeds, number)
        name, size = f"phantom_{number:03d}_{scene.magnification}.png", scene.size_px
        pixels = image(scene, phantom, seeds, number)
        with atomic(folder / "images" / name) as temporary:
            Image.fromarray(pixels).save(temporary, compress_level=3)
        images.append({
            "id": number, "file_name": name, "width": size, "height": size, "pixel_size_nm": scene.pixel_size_nm,
            "magnification": scene.magnification, "grain": scene.grain, "beam": phantom.beam,
            "azimuth_deg": round(scene.azimuth_deg, 3), "dose_electrons": round(scene.dose_electrons, 3),
            "contrast": round(scene.contrast, 6), "defocus_px": round(scene.defocus_px, 6),
        })  # fmt: skip
        label_ids = {}
        for label in annotate(scene, phantom.annotator, seeds.rng("annotator", number)):
            label_ids[label.defect] = len(labels) + 1
            labels.append({"id": len(labels) + 1, "image_id": number, **_annotation(label, size)})
        defects += [
            {"id": len(defects) + k, "image_id": number, **_annotation(label, size),
             "label_id": label_ids.get(label.defect), "defect": _rounded(scene.defects[label.defect])}
            for k, label in enumerate(truth(scene), start=1)
        ]  # fmt: skip
    categories = [{"id": code, "name": name} for code, name in enumerate(CLASSES, start=1)]
    for file, drawn, what in (("annotations.json", labels, "labels"), (TRUTH, defects, "perfect truth")):
        title = f"Simulated STEM bright-field micrographs of FeCrAl ({what}); a stand-in, not the paper's data"
        card = {"name": "phantom", "title": title, "source": f"drawn by companion.phantom, preset '{phantom.preset}'",
                "licence": "CC-BY-4.0", "citation": "this companion", "simulated": True, "root_seed": root_seed,
                "parameters": phantom.model_dump(mode="json")}  # fmt: skip
        info = {"description": title, "dataset_card": card}
        write_json(folder / file, {"info": info, "images": images, "annotations": drawn, "categories": categories})


def _annotation(label: Label, size: int) -> dict[str, Any]:
    """COCO annotation of a mask in an image of side `size` px."""
    full = np.zeros((size, size, 1), dtype=np.uint8).T  # [1, H, W], columns contiguous: run lengths go down them
    full[0][label.window] = label.mask
    x1, y1, x2, y2 = box_of(label.mask)
    return {
        "category_id": label.code, "area": int(label.mask.sum()), "iscrowd": 0,
        "bbox": [label.window[1].start + x1, label.window[0].start + y1, x2 - x1, y2 - y1],
        "segmentation": {"size": [size, size], "counts": encode_rle(full)[0].decode("ascii")},
    }  # fmt: skip


def _rounded(values: Any) -> dict[str, Any]:
    """Fields of a dataclass to six decimals: what is left beyond depends on the machine's mathematics library."""
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(values).items()}
