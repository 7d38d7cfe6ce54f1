"""A phantom data set folder: scenes drawn, imaged and labelled."""

from __future__ import annotations

from pathlib import Path

from companion import seeds
from companion.data.pixels import annotation_of, write_grey
from companion.params import Phantom
from companion.phantom import annotator, optics
from companion.phantom.scene import CLASSES, draw_scene
from companion.provenance import write_json


def render_dataset(parameters: Phantom, root_seed: int, folder: Path) -> None:
    """Write a data set folder (``images/``, ``annotations.json``) of simulated micrographs.

    Each image has its own generators, by number: the first images of a larger set are those of a smaller one.
    """
    images, annotations = [], []
    shape = (parameters.size_px, parameters.size_px)
    for number in range(1, parameters.n_images + 1):
        rng = [seeds.generator(root_seed, "phantom", part, number) for part in ("scene", "optics")]
        scene = draw_scene(parameters, rng[0])
        name = f"phantom_{number:03d}.png"
        write_grey(folder / "images" / name, optics.render(scene, parameters, rng[1]))
        images.append({
            "id": number, "file_name": name, "width": shape[1], "height": shape[0],
            "pixel_size_nm": scene.pixel_size_nm, "beam": scene.beam, "azimuth_deg": round(scene.azimuth_deg, 3),
        })  # fmt: skip
        for label in annotator.truth(scene):
            entry = annotation_of(label.mask, label.window, shape, label.code)
            annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
    card = {
        "name": "phantom",
        "title": "Simulated STEM bright-field micrographs of FeCrAl; a stand-in, not the paper's data",
        "source": "drawn by companion.phantom", "licence": "CC-BY-4.0", "simulated": True,
        "root_seed": root_seed, "parameters": parameters.model_dump(mode="json"),
    }  # fmt: skip
    write_json(folder / "annotations.json", {
        "info": {"description": card["title"], "dataset_card": card},
        "images": images, "annotations": annotations,
        "categories": [{"id": code, "name": name} for code, name in enumerate(CLASSES, start=1)],
    })  # fmt: skip
