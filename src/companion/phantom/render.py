"""A phantom data set folder: scenes drawn, imaged and labelled, with the perfect truth kept beside the labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from companion import seeds
from companion.micrographs.images import annotation_of, write_grey
from companion.config.phantom import Annotator, Phantom
from companion.phantom import optics
from companion.phantom.annotator import annotate, truth
from companion.phantom.difficulty import difficulty
from companion.phantom.scene import CLASSES, Scene, draw_scene
from companion.provenance import write_json

TRUTH = "truth.json"


def render_dataset(parameters: Phantom, root_seed: int, folder: Path) -> None:
    """Write a data set folder of simulated micrographs.

    ``annotations.json`` holds what the annotator drew. ``truth.json``, of the same format, holds every defect,
    with its parameters and the id of its label (null where it was overlooked); `load_dataset` reads either.
    Each image has its own generators, by number: the first images of a larger set are those of a smaller one.
    """
    images, labels, defects = [], [], []
    for number in range(1, parameters.n_images + 1):
        scene = draw_scene(parameters, root_seed, number)
        name = f"phantom_{number:03d}_{scene.magnification}.png"
        pixels = optics.render(scene, parameters, root_seed, number)
        write_grey(folder / "images" / name, pixels)
        images.append(_image(number, name, scene, parameters))
        labelled = _labels(scene, parameters.annotator, root_seed, number, first_id=len(labels) + 1)
        labels += labelled.values()
        for label in truth(scene):
            defect = scene.defects[label.defect]
            defects.append({
                "id": len(defects) + 1, "image_id": number,
                **annotation_of(label.mask, label.window, pixels.shape, label.code),
                "label_id": labelled.get(label.defect, {}).get("id"), "defect": _rounded(asdict(defect)),
            })  # fmt: skip
    write_json(folder / "annotations.json", _document(parameters, root_seed, images, labels, "labels"))
    write_json(folder / TRUTH, _document(parameters, root_seed, images, defects, "perfect truth"))


def _labels(
    scene: Scene, annotator: Annotator, root_seed: int, number: int, first_id: int
) -> dict[int, dict[str, Any]]:
    """COCO annotations by number of the defect that they label."""
    shape = (scene.size_px, scene.size_px)
    drawn = annotate(scene, annotator, seeds.generator(root_seed, "phantom", "annotator", number))
    return {
        label.defect: {"id": k, "image_id": number, **annotation_of(label.mask, label.window, shape, label.code)}
        for k, label in enumerate(drawn, start=first_id)
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Six decimals: what is left beyond them depends on the machine's mathematics library."""
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def _image(number: int, name: str, scene: Scene, parameters: Phantom) -> dict[str, Any]:
    return {
        "id": number, "file_name": name, "width": scene.size_px, "height": scene.size_px,
        "pixel_size_nm": scene.pixel_size_nm, "magnification": scene.magnification, "grain": scene.grain,
        "beam": parameters.beam, "azimuth_deg": round(scene.azimuth_deg, 3), "same_field_as": scene.same_field_as,
        "session": _rounded(asdict(scene.session)),
    }  # fmt: skip


def _document(
    parameters: Phantom, root_seed: int, images: list[dict[str, Any]], annotations: list[dict[str, Any]], what: str
) -> dict[str, Any]:
    card = {
        "name": "phantom",
        "title": f"Simulated STEM bright-field micrographs of FeCrAl ({what}); a stand-in, not the paper's data",
        "source": f"drawn by companion.phantom, preset '{parameters.preset}'",
        "difficulty": difficulty(parameters),
        "licence": "CC-BY-4.0",
        "citation": "this companion",
        "simulated": True,
        "root_seed": root_seed,
        "parameters": parameters.model_dump(mode="json"),
    }
    categories = [{"id": code, "name": name} for code, name in enumerate(CLASSES, start=1)]
    return {"info": {"description": card["title"], "dataset_card": card}, "images": images,
            "annotations": annotations, "categories": categories}  # fmt: skip
