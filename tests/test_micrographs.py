"""The one format, cutting and splits: hand-made data, and what bad input gets."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import ellipse_patches
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco

from companion.errors import CompanionError
from companion.geometry import encode_rle
from companion.micrographs.check import check_dataset
from companion.micrographs.coco import read_coco, segmentation_mask
from companion.micrographs.cutting import cut_patches, describe
from companion.micrographs.dataset import load_dataset
from companion.micrographs.patches import load_patches


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def make_dataset(folder, n: int = 3, size: int = 64, **changes):
    """`n` noise images; the first has two overlapping squares and a run-length mask, the rest one square."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for k in range(1, n + 1):
        Image.fromarray(rng.integers(0, 255, (size, size)).astype(np.uint8)).save(folder / "images" / f"m{k}.png")
        images.append({"id": k, "file_name": f"m{k}.png", "width": size, "height": size, "pixel_size_nm": 0.5,
                       "film": "a" if k % 2 else "b"})  # fmt: skip
        annotations.append({"id": 10 * k, "image_id": k, "category_id": 7, "segmentation": square(4, 4, 10),
                            "bbox": [4, 4, 10, 10], "iscrowd": 0})  # fmt: skip
    mask = np.zeros((1, size, size), bool)
    mask[0, 40:50, 40:60] = True
    run_lengths = {"size": [size, size], "counts": encode_rle(mask)[0].decode()}
    annotations += [
        {"id": 901, "image_id": 1, "category_id": 3, "segmentation": square(9, 4, 10)},
        {"id": 902, "image_id": 1, "category_id": 7, "segmentation": run_lengths},
    ]
    document = {"images": images, "annotations": annotations,
                "categories": [{"id": 3, "name": "loop"}, {"id": 7, "name": "dot"}], **changes}  # fmt: skip
    (folder / "annotations.json").write_text(json.dumps(document))
    return document


def test_categories_become_codes_in_order_of_the_file_and_later_instances_lie_on_top(tmp_path):
    make_dataset(tmp_path)
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("loop", "dot")
    first = dataset.micrographs[0].instances()
    assert first.codes.tolist() == [0, 2, 1, 2]
    assert first.ids.dtype == np.uint8
    assert np.bincount(first.ids.ravel())[1:].tolist() == [50, 100, 200]
    assert first.overlap_share == pytest.approx(50 / 400)
    assert first.ids[45, 45] == 3 and first.ids[5, 12] == 2 and first.ids[5, 5] == 1


def annotated(folder, annotations, **more):
    """The data set of one image with these (category_id, segmentation)."""
    annotations = [
        {"id": k, "image_id": 1, "category_id": category, "segmentation": segmentation}
        for k, (category, segmentation) in enumerate(annotations, start=1)
    ]
    make_dataset(folder, n=1, annotations=annotations, **more)
    return load_dataset(folder)


def test_run_lengths_several_polygons_and_no_annotations(tmp_path):
    counts = [64 * 2 + 3, 5, 64 * 64 - 64 * 2 - 8]  # column-major: column 2, rows 3-7
    squares = [*square(10, 10, 4), *square(30, 40, 5)]
    dataset = annotated(tmp_path, [(3, {"size": [64, 64], "counts": counts}), (7, squares)])
    ids = dataset.micrographs[0].instances().ids
    assert (np.argwhere(ids == 1) == [[row, 2] for row in range(3, 8)]).all()
    assert (ids == 2).sum() == 16 + 25 and ids[11, 11] == ids[42, 32] == 2
    truth = annotated(tmp_path, []).micrographs[0].instances()
    assert truth.ids.max() == 0 and truth.overlap_share == 0 and truth.codes.tolist() == [0]


def test_more_than_255_instances_need_16_bit_ids(tmp_path):
    many = [(3, square(4 * (k % 30), 4 * (k // 30), 3)) for k in range(300)]
    dataset = annotated(tmp_path, many, size=128)
    assert dataset.micrographs[0].instances().ids.dtype == np.uint16
    patches, _ = cut_patches(dataset, ["m1.png"], 128, 128, 0.5)
    assert len(patches.table) == 300 and patches.instances.dtype == np.uint16


def test_every_problem_is_reported_at_once(tmp_path):
    document, good = make_dataset(tmp_path, n=4), {"image_id": 4, "category_id": 3, "segmentation": square(4, 4, 10)}
    bad = [
        ({"category_id": 99}, r"m4.png, annotation 50: unknown category_id 99; known: [3, 7]"),
        ({"segmentation": square(60, 4, 10)}, "annotation 51: a polygon reaches outside the 64 x 64 px image"),
        ({"segmentation": []}, "annotation 52: segmentation should be run lengths, or polygons"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 53: segmentation should be"),
        ({"segmentation": {"size": [9, 9], "counts": "1"}}, "annotation 54: its run lengths are of 9 x 9 px"),
        ({"segmentation": {"size": [64, 64], "counts": [5, 5]}}, "annotation 55: its run lengths are not counts that"),
        ({"image_id": 50}, "annotation 56: image_id 50 is not among the images"),
    ]
    document["annotations"] += [{"id": 50 + k, **good, **change} for k, (change, _) in enumerate(bad)]
    document["images"][0]["width"] = 63
    document["images"][1]["pixel_size_nm"] = 0
    document["images"].append({"id": 9, "file_name": "gone.png", "width": 8, "height": 8, "pixel_size_nm": 1})
    document["images"].append({"id": 8, "file_name": "../m1.png", "width": 64, "height": 64, "pixel_size_nm": 1})
    Image.open(tmp_path / "images" / "m1.png").save(tmp_path / "m1.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "images" / "m3.png")
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(CompanionError) as caught:
        load_dataset(tmp_path)
    for part in (
        "m1.png: is 64 x 64 px, annotated as 63 x 64", "m2.png: pixel_size_nm should be a positive", "colour picture",
        "gone.png: missing", "../m1.png: missing", *(message for _, message in bad),
    ):  # fmt: skip
        assert part in str(caught.value)


def test_what_is_not_coco_is_said_to_be_so(tmp_path):
    with pytest.raises(CompanionError, match=r"annotations.json does not exist; one JSON file"):
        load_dataset(tmp_path)
    for content in ("[]", '{"images": []}', '{"images": [], "annotations": {}, "categories": []}'):
        (tmp_path / "annotations.json").write_text(content)
        with pytest.raises(CompanionError, match=r"is not a COCO annotation file"):
            load_dataset(tmp_path)
    make_dataset(tmp_path, images=[], annotations=[], categories=[])
    with pytest.raises(CompanionError, match=r"it has 0 images and 0 categories"):
        load_dataset(tmp_path)
    document = make_dataset(tmp_path)
    document["images"] += [{"id": 1, "file_name": "m9.png"}, {"id": "x", "file_name": "m8.png"}]
    document["categories"] = [{"id": True, "name": "dot"}, 7]
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(CompanionError) as caught:
        read_coco(tmp_path / "annotations.json")
    for part in ("images, entry 5, id: ", "categories, entry 1, id: ", "categories, entry 2: "):
        assert part in str(caught.value)


def test_cutting_keeps_what_is_visible_enough_and_flags_what_is_cut(tmp_path):
    dataset = annotated(tmp_path, [(3, square(28, 8, 10)), (7, square(40, 40, 6))])  # the first: 40 % left of x = 32
    patches, report = cut_patches(dataset, ["m1.png"], 32, 32, 0.5, (0, 1, 2, 3))
    rows = patches.table[["patch", "instance", "class", "area_px", "touches_border"]].values.tolist()
    assert rows == [[1, 1, 1, 60, True], [3, 1, 2, 36, False]]
    assert patches.table.loc[0, ["x1", "y1", "x2", "y2"]].tolist() == [0, 8, 6, 18]
    assert (patches.instances[0] == 0).all()
    assert report[["patches", "instances", "empty_patches", "cut_away"]].values.tolist() == [[4, 2, 2, 1]]
    assert patches.symmetries == (0, 1, 2, 3) and patches.index["symmetry"].eq(0).all()
    assert patches.index[["x0", "y0"]].values.tolist() == [[0, 0], [32, 0], [0, 32], [32, 32]]
    np.testing.assert_array_equal(patches.images[3], dataset.micrographs[0].read()[32:, 32:])
    loose, _ = cut_patches(dataset, ["m1.png"], 32, 32, 0.4)
    assert len(loose.table) == 3
    found = describe(loose)
    assert (found["patches"], found["empty patches"], found["most in a patch"]) == (4, 1, 1)
    assert found["share cut by a border"] == found["share of loop"] == pytest.approx(2 / 3)
    assert describe(patches)["patches with symmetries"] == 16
    with pytest.raises(CompanionError, match=r"m1.png is 64 x 64 px"):
        cut_patches(dataset, ["m1.png"], 96, 32, 0.5)


def test_check_describes_a_data_set(tmp_path):
    document = make_dataset(tmp_path, n=3, info={"dataset_card": {"name": "mine", "source": "here"}})
    shutil.copyfile(tmp_path / "images" / "m1.png", tmp_path / "images" / "m3.png")
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != 3]
    document["categories"].append({"id": 9, "name": "void"})
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    _, card, classes, notes = check_dataset(tmp_path)
    assert card["name"] == "mine" and card["sizes"] == "64 x 64 px of 0.5 nm (3)"
    assert card["micrographs"] == "3, of which 1 without a labelled defect"
    assert classes["instances"].tolist() == [1, 3, 0]
    assert classes["median_nm"][0] == pytest.approx(2 * (100 / np.pi) ** 0.5 * 0.5)
    said = "\n".join(notes)
    for part in ("class 'void' has no instance", "m1.png and m3.png look like", "states no licence", "m1.png: 12% of"):
        assert part in said


points = st.lists(st.tuples(st.floats(-1, 41), st.floats(-1, 33)), min_size=3, max_size=9)


@given(segmentation=arrays(bool, (32, 40)) | points)
@settings(max_examples=100)
def test_a_segmentation_in_its_window_is_the_whole_mask(segmentation):
    if isinstance(segmentation, list):
        segmentation = [[float(value) for point in segmentation for value in point]]
        whole = coco.decode(coco.merge(coco.frPyObjects(segmentation, 32, 40))).astype(bool)
    else:
        whole = segmentation
        segmentation = {"size": [32, 40], "counts": encode_rle(whole[None])[0].decode("ascii")}
    found, window = segmentation_mask(segmentation, 32, 40)
    again = np.zeros((32, 40), bool)
    again[window] = found
    np.testing.assert_array_equal(again, whole)


def test_patches_come_back_as_saved_and_broken_folders_are_named(tmp_path):
    patches = ellipse_patches(12)
    patches.save(tmp_path / "p")
    again = load_patches(tmp_path / "p")
    np.testing.assert_array_equal(again.images, patches.images)
    np.testing.assert_array_equal(again.instances, patches.instances)
    assert again.table.equals(patches.table) and again.index.equals(patches.index)
    assert (again.classes, again.symmetries, again.size) == (patches.classes, patches.symmetries, 64)
    masks = patches.only(np.array([5, 2]))
    assert masks.of(0)[["x1", "y2"]].values.tolist() == patches.of(5)[["x1", "y2"]].values.tolist()
    replace(masks, images=None).save(tmp_path / "masks")
    again = load_patches(tmp_path / "masks")
    assert again.images is None and again.table.equals(masks.table)
    np.save(tmp_path / "p" / "images.npy", patches.images[:3])
    with pytest.raises(CompanionError, match=r"images \(3, 64, 64\), instances \(12, 64, 64\) and 12 rows of"):
        load_patches(tmp_path / "p")
    (tmp_path / "masks" / "instances.npy").unlink()
    with pytest.raises(CompanionError, match=r"is not a patches folder: .*instances.npy"):
        load_patches(tmp_path / "masks")
