"""The one format, cutting and splits: hand-made data, and what bad input gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from companion.micrographs import splits
from companion.micrographs.check import check_dataset
from companion.micrographs.cutting import count_classes, count_patches, cut_patches, grid
from companion.micrographs.dataset import DataSet, Micrograph, load_dataset
from companion.micrographs.importers import import_coco
from companion.micrographs.images import annotation_of, segmentation_mask
from companion.micrographs.splits import make_split
from companion.errors import CompanionError
from companion.geometry import encode_rle
from companion.config.profile import load_profile


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def make_dataset(folder, n: int = 3, size: int = 64, dtype=np.uint8, **changes):
    """`n` noise images; the first has two overlapping squares and a run-length mask, the rest one square."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for k in range(1, n + 1):
        top = 255 if dtype == np.uint8 else 4000
        Image.fromarray(rng.integers(0, top, (size, size)).astype(dtype)).save(folder / "images" / f"m{k}.png")
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
                "categories": [{"id": 7, "name": "dot"}, {"id": 3, "name": "loop"}], **changes}  # fmt: skip
    (folder / "annotations.json").write_text(json.dumps(document))
    return document


def test_categories_become_codes_in_order_of_id_and_later_instances_lie_on_top(tmp_path):
    make_dataset(tmp_path)
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("loop", "dot")
    first = dataset.micrographs[0].instances()
    assert first.codes.tolist() == [0, 2, 1, 2]
    assert first.ids.dtype == np.uint8
    assert np.bincount(first.ids.ravel())[1:].tolist() == [50, 100, 200]
    assert first.overlap_share == pytest.approx(50 / 400)
    assert first.ids[45, 45] == 3 and first.ids[5, 12] == 2 and first.ids[5, 5] == 1


def test_uncompressed_run_lengths_and_several_polygons(tmp_path):
    document = make_dataset(tmp_path, n=1)
    counts = [64 * 2 + 3, 5, 64 * 64 - 64 * 2 - 8]  # column-major: column 2, rows 3-7
    document["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": {"size": [64, 64], "counts": counts}, "iscrowd": 1},
        {"id": 2, "image_id": 1, "category_id": 7, "segmentation": [*square(10, 10, 4), *square(30, 40, 5)]},
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    ids = load_dataset(tmp_path).micrographs[0].instances().ids
    assert (np.argwhere(ids == 1) == [[row, 2] for row in range(3, 8)]).all()
    assert (ids == 2).sum() == 16 + 25
    assert ids[11, 11] == ids[42, 32] == 2


def test_an_image_without_annotations_is_an_empty_micrograph(tmp_path):
    make_dataset(tmp_path, annotations=[])
    truth = load_dataset(tmp_path).micrographs[2].instances()
    assert truth.ids.max() == 0 and truth.overlap_share == 0 and truth.codes.tolist() == [0]


def test_16_bit_is_scaled_by_percentiles(tmp_path):
    make_dataset(tmp_path, dtype=np.uint16)
    pixels = load_dataset(tmp_path).micrographs[0].read()
    assert pixels.dtype == np.uint8
    assert pixels.min() == 0 and pixels.max() == 255
    assert 0.001 < (pixels == 0).mean() < 0.02


def test_more_than_255_instances_need_16_bit_ids(tmp_path):
    document = make_dataset(tmp_path, n=1, size=128)
    document["annotations"] = [
        {"id": k, "image_id": 1, "category_id": 3, "segmentation": square(4 * (k % 30), 4 * (k // 30), 3)}
        for k in range(300)
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    dataset = load_dataset(tmp_path)
    assert dataset.micrographs[0].instances().ids.dtype == np.uint16
    patches, _ = cut_patches(dataset, ["m1.png"], 128, 128, 0.5)
    assert len(patches.table) == 300 and patches.instances.dtype == np.uint16


BAD = {
    "unknown category": ({"category_id": 99}, r"m1.png, annotation 10: unknown category_id 99; known: \[3, 7\]"),
    "box outside": ({"bbox": [60, 4, 10, 10]}, r"box \[60, 4, 10, 10\] is empty or outside the 64 x 64 px image"),
    "polygon outside": ({"segmentation": square(60, 4, 10)}, "a polygon reaches outside"),
    "no segmentation": ({"segmentation": []}, "a box alone does not say which pixels"),
    "run lengths of another size": (
        {"segmentation": {"size": [9, 9], "counts": "1"}},
        r"run lengths are for size \[9, 9\]",
    ),
    "run lengths that do not add up": ({"segmentation": {"size": [64, 64], "counts": [5, 5]}}, "run lengths"),
    "unknown image": ({"image_id": 50}, "image_id 50 is not among the images"),
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, "at least three x, y pairs"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_annotations_are_named(tmp_path, change, message):
    document = make_dataset(tmp_path)
    document["annotations"][0].update(change)
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(CompanionError, match=message):
        load_dataset(tmp_path)


def test_every_problem_is_reported_at_once(tmp_path):
    document = make_dataset(tmp_path)
    document["images"][0]["width"] = 63
    document["images"][1]["pixel_size_nm"] = 0
    document["images"].append({"id": 9, "file_name": "gone.png", "width": 8, "height": 8, "pixel_size_nm": 1})
    document["annotations"][1]["category_id"] = 5
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "m3.png")
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(CompanionError) as caught:
        load_dataset(tmp_path)
    for part in (
        "6 problem(s)", "m1.png: is 64 x 64 px, annotated as 63 x 64", "m2.png: pixel_size_nm",
        "gone.png: missing", "m2.png, annotation 20: unknown category_id 5", "m3.png: is not an 8 or",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_what_is_not_coco_is_said_to_be_so(tmp_path):
    with pytest.raises(CompanionError, match=r"no annotation file"):
        load_dataset(tmp_path)
    for content in ("{", "[]", '{"images": []}', '{"images": [], "annotations": {}, "categories": []}'):
        (tmp_path / "annotations.json").write_text(content)
        with pytest.raises(CompanionError, match=r"is not a COCO annotation file"):
            load_dataset(tmp_path)
    make_dataset(tmp_path, images=[], annotations=[], categories=[])
    with pytest.raises(CompanionError, match=r"(?s)categories is empty.*data set is empty"):
        load_dataset(tmp_path)


def test_the_paper_s_grid():
    assert list(grid(1024, 256, 192)) == [0, 192, 384, 576, 768]
    assert 100 * len(grid(1024, 256, 192)) ** 2 * 4 == 10_000
    assert 22 * len(grid(1024, 256, 192)) ** 2 == 550


def test_cutting_keeps_what_is_visible_enough_and_flags_what_is_cut(tmp_path):
    document = make_dataset(tmp_path, n=1)
    document["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": square(28, 8, 10)},  # 40 % left of x = 32
        {"id": 2, "image_id": 1, "category_id": 7, "segmentation": square(40, 40, 6)},
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    dataset = load_dataset(tmp_path)
    patches, report = cut_patches(dataset, ["m1.png"], 32, 32, 0.5, (0, 1, 2, 3))
    assert patches.table[["patch", "instance", "class", "area_px", "touches_border"]].values.tolist() == [
        [1, 1, 1, 60, True],
        [3, 1, 2, 36, False],
    ]
    assert patches.table.loc[0, ["x1", "y1", "x2", "y2"]].tolist() == [0, 8, 6, 18]
    assert (patches.instances[0] == 0).all()
    assert report[["patches", "instances", "empty_patches", "cut_away"]].values.tolist() == [[4, 2, 2, 1]]
    assert patches.symmetries == (0, 1, 2, 3) and patches.index["symmetry"].eq(0).all()
    assert patches.index[["x0", "y0"]].values.tolist() == [[0, 0], [32, 0], [0, 32], [32, 32]]
    np.testing.assert_array_equal(patches.images[3], dataset.micrographs[0].read()[32:, 32:])
    loose, _ = cut_patches(dataset, ["m1.png"], 32, 32, 0.4)
    assert len(loose.table) == 3
    assert count_patches(loose)["empty_patches"] == 1
    assert count_classes(loose)["instances"].tolist() == [2, 1]
    assert count_classes(loose)["cut_by_border"].tolist() == [1.0, 0.0]


def test_patches_larger_than_micrographs_are_refused(tmp_path):
    make_dataset(tmp_path)
    with pytest.raises(CompanionError, match=r"m1.png is 64 x 64 px"):
        cut_patches(load_dataset(tmp_path), ["m1.png"], 96, 32, 0.5)


def test_drawn_splits_are_disjoint_nested_and_repeatable(tmp_path):
    make_dataset(tmp_path, n=16)
    dataset = load_dataset(tmp_path)
    one = make_split(dataset, 1, [4, 10], 6, root_seed=5)
    assert len(one.train) == 10 and len(one.test) == 6
    assert set(one.train) | set(one.test) == set(dataset.files)
    assert one == make_split(dataset, 1, [4], 6, root_seed=5)
    assert one.test != make_split(dataset, 2, [4], 6, root_seed=5).test
    with pytest.raises(CompanionError, match=r"has 16 micrographs; 11 for training and 6 .* at most N = 10 fits"):
        make_split(dataset, 1, [11], 6, root_seed=5)


def test_validation_micrographs_are_those_that_neither_train_nor_test(tmp_path):
    make_dataset(tmp_path, n=16)
    dataset = load_dataset(tmp_path)
    without, some, more = (make_split(dataset, 1, [4, 8], 5, 5, n_val=n_val) for n_val in (0, 2, 9))
    assert without.val == () and len(some.val) == 2
    assert len(more.val) == 3, "16 - 8 - 5 are left"
    for split in (some, more):
        assert split.test == without.test and split.train[:8] == without.train[:8]
        assert sorted((*split.train, *split.val, *split.test)) == sorted(dataset.files)
    some.save(tmp_path / "mine.yaml")
    assert make_split(dataset, str(tmp_path / "mine.yaml"), [4], 5, 5).val == some.val


def test_split_files_come_back_as_written(tmp_path):
    make_dataset(tmp_path, n=6)
    dataset = load_dataset(tmp_path)
    drawn = make_split(dataset, 3, [3], 2, root_seed=1)
    drawn.save(tmp_path / "mine.yaml")
    read = make_split(dataset, str(tmp_path / "mine.yaml"), [3], 2, root_seed=9)
    assert (read.train, read.test) == (drawn.train, drawn.test)


def test_bad_split_files_list_their_problems(tmp_path):
    make_dataset(tmp_path, n=4)
    dataset = load_dataset(tmp_path)
    path = tmp_path / "s.yaml"
    path.write_text("train: [m1.png, m2.png, m2.png, x.png]\ntest: [m1.png]\ntset: 1\n")
    with pytest.raises(CompanionError) as caught:
        make_split(dataset, str(path), [9], 1, root_seed=1)
    for part in (
        "tset: no such entry; did you mean 'test'?", "train names x.png, which", "train names m2.png twice",
        "train and test overlap: m1.png", "train lists 4 micrographs; the profile asks for N = 9",
    ):  # fmt: skip
        assert part in str(caught.value)
    for content, message in (("[1]", "should map"), ("a: [", "not a split file"), ("name: x", "train is missing")):
        path.write_text(content)
        with pytest.raises(CompanionError, match=message):
            make_split(dataset, str(path), [1], 1, root_seed=1)
    with pytest.raises(CompanionError, match=r"no split file"):
        make_split(dataset, "nowhere.yaml", [1], 1, root_seed=1)


def test_near_duplicates_across_the_split_are_listed(tmp_path):
    make_dataset(tmp_path, n=4)
    pixels = np.asarray(Image.open(tmp_path / "images" / "m1.png")).astype(int)
    noisy = np.clip(pixels + np.random.default_rng(3).integers(-4, 5, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(tmp_path / "images" / "m4.png")
    path = tmp_path / "s.yaml"
    path.write_text("train: [m1.png, m2.png]\ntest: [m3.png, m4.png]\n")
    with pytest.warns(UserWarning, match=r"m1.png ~ m4.png"):
        split = make_split(load_dataset(tmp_path), str(path), [2], 1, root_seed=1)
    assert split.near_duplicates == (("m1.png", "m4.png"),)
    path.write_text("train: [m1.png]\ntest: [m3.png]\nval: [m2.png, m4.png]\n")
    with pytest.warns(UserWarning, match=r"m1.png ~ m4.png"):
        make_split(load_dataset(tmp_path), str(path), [1], 1, root_seed=1)
    path.write_text("train: [m2.png]\ntest: [m1.png]\nval: [m4.png]\n")
    with pytest.warns(UserWarning, match=r"m4.png ~ m1.png"):
        make_split(load_dataset(tmp_path), str(path), [1], 1, root_seed=1)


def test_near_duplicates_of_validation_are_listed_too(tmp_path):
    make_dataset(tmp_path, n=6)
    for copy, of in (("m4.png", "m1.png"), ("m5.png", "m3.png")):
        shutil.copyfile(tmp_path / "images" / of, tmp_path / "images" / copy)
    path = tmp_path / "s.yaml"
    path.write_text("train: [m1.png, m2.png]\ntest: [m3.png, m6.png]\nval: [m4.png, m5.png]\n")
    with pytest.warns(UserWarning) as said:
        split = make_split(load_dataset(tmp_path), str(path), [2], 1, root_seed=1)
    assert split.near_duplicates == (("m1.png", "m4.png"), ("m5.png", "m3.png"))
    assert "training and validation" in str(said[0].message) and "validation and test" in str(said[1].message)


@pytest.mark.parametrize("split", [1, 2])
def test_the_course_keeps_frames_of_a_grain_on_one_side(split):
    """Names and grains of the course's phantom, without its pixels: 132 micrographs, three to a grain."""
    course = load_profile("course")
    grain = 1 + np.arange(course.phantom.n_images) // course.phantom.frames_per_grain
    names = [f"phantom_{k:03d}.png" for k in range(1, len(grain) + 1)]
    frames = tuple(Micrograph(Path(), name, 1, 1, 1.0, (), {}, {"grain": int(number)})
                   for name, number in zip(names, grain, strict=True))  # fmt: skip
    dataset, by = DataSet("phantom", Path(), ("a",), frames), course.group_by["phantom"]
    made = splits._drawn(dataset, "1", split, course.sizes, (course.n_test, course.n_val), course.root_seed, by)
    side = dict.fromkeys(made.train, "train") | dict.fromkeys(made.test, "test")
    side |= dict.fromkeys(made.val, "val")
    assert all(len({side[n] for n, own in zip(names, grain, strict=True) if own == g}) == 1 for g in np.unique(grain))
    assert len(made.train) >= max(course.sizes) and course.n_test - 2 <= len(made.test) <= course.n_test
    assert course.n_val - 2 <= len(made.val) <= course.n_val


def test_grouped_splits_keep_groups_together(tmp_path):
    document = make_dataset(tmp_path, n=12)
    for k, image in enumerate(document["images"]):
        image["grain"] = k // 3
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    dataset = load_dataset(tmp_path)
    path = tmp_path / "s.yaml"
    path.write_text("{name: by-grain, seed: 4, group_by: grain}")
    split = make_split(dataset, str(path), [4], 6, root_seed=1)
    grains = [{(int(name[1:-4]) - 1) // 3 for name in files} for files in (split.train, split.test)]
    assert len(split.test) == 6 and len(split.train) == 6 and not grains[0] & grains[1]
    with_val = make_split(dataset, str(path), [3], 5, 1, n_val=4)  # a group of 3 each, and 3 that nothing needs
    parts = [{(int(name[1:-4]) - 1) // 3 for name in files} for files in (with_val.train, with_val.val, with_val.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 4 and len(with_val.val) == len(with_val.test) == 3
    assert make_split(dataset, 4, [4], 6, root_seed=1, group_by="grain").test == split.test
    path.write_text("{seed: 4, group_by: 'm(1?)'}")  # m1 and m10-m12 begin with 1: a group of 4, the rest 8
    split = make_split(dataset, str(path), [4], 4, root_seed=1)
    assert set(split.test) == {"m1.png", "m10.png", "m11.png", "m12.png"}
    for content, message in (
        ("{seed: 4, group_by: film}", r"groups of 6, 6 micrographs: 4 for testing and 4 for training cannot be kept"),
        (
            "{seed: 4, group_by: flim}",
            r"neither an entry of every image \(film, grain\) nor found in the file name of m1",
        ),
        ("{seed: 4, group_by: '('}", r"not a regular expression"),
        ("{train: [m1.png], test: [m2.png], group_by: film}", r"group_by goes with a seed"),
    ):
        path.write_text(content)
        with pytest.raises(CompanionError, match=message):
            make_split(dataset, str(path), [4] if "seed" in content else [1], 4, root_seed=1)


def test_check_describes_a_data_set(tmp_path):
    document = make_dataset(tmp_path, n=3, info={"dataset_card": {"name": "mine", "source": "here"}})
    shutil.copyfile(tmp_path / "images" / "m1.png", tmp_path / "images" / "m3.png")
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != 3]
    document["categories"].append({"id": 9, "name": "void"})
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    check = check_dataset(tmp_path)
    assert check.card["name"] == "mine" and check.card["size, px"] == "64 x 64 (3)"
    assert check.card["micrographs"] == "3, of which 1 without a labelled defect"
    assert check.classes["instances"].tolist() == [1, 3, 0]
    assert check.classes["median_nm"][0] == pytest.approx(2 * (100 / np.pi) ** 0.5 * 0.5)
    assert check.near_duplicates == (("m1.png", "m3.png"),)
    notes = "\n".join(check.notes)
    for part in ("class 'void' has no instance", "m1.png and m3.png look like", "states no licence", "m1.png: 12% of"):
        assert part in notes


def test_import_coco_keeps_the_classes_asked_for(tmp_path):
    document = make_dataset(tmp_path / "in")
    document["images"] = [{k: v for k, v in i.items() if k != "pixel_size_nm"} for i in document["images"]]
    (tmp_path / "in" / "labels.json").write_text(json.dumps(document))
    where = tmp_path / "in" / "images", tmp_path / "in" / "labels.json"
    dataset = import_coco(*where, ["dot"], 0.25, tmp_path / "out")
    assert dataset.classes == ("dot",) and dataset.micrographs[0].pixel_size_nm == 0.25
    assert [len(m.annotations) for m in dataset.micrographs] == [2, 1, 1]
    both = import_coco(*where, ["dot", "loop"], 0.25, tmp_path / "both")
    assert both.classes == ("dot", "loop")
    assert both.micrographs[0].instances().codes.tolist() == [0, 1, 2, 1]
    with pytest.raises(CompanionError, match=r"class 'loops' is not among"):
        import_coco(*where, ["loops"], 0.25, tmp_path / "none")
    with pytest.raises(CompanionError, match=r"exists already"):
        import_coco(*where, None, 0.25, tmp_path / "out")
    with pytest.raises(CompanionError, match=r"pixel_size_nm should be"):
        import_coco(*where, None, None, tmp_path / "none")
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".tmp*"))


shapes = st.tuples(st.integers(8, 40), st.integers(8, 40))


@given(shape=shapes, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_mask_survives_its_annotation(shape, data):
    y1, x1 = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
    y2, x2 = data.draw(st.integers(y1 + 1, shape[0])), data.draw(st.integers(x1 + 1, shape[1]))
    mask = data.draw(arrays(bool, (y2 - y1, x2 - x1)))
    entry = annotation_of(mask, (slice(y1, y2), slice(x1, x2)), shape, 1)
    full = np.zeros(shape, bool)
    full[y1:y2, x1:x2] = mask
    found, window = segmentation_mask(entry["segmentation"], *shape)
    again = np.zeros(shape, bool)
    again[window] = found
    np.testing.assert_array_equal(again, full)
    assert entry["area"] == full.sum()
    left, top, width, height = entry["bbox"]
    if mask.any():
        assert full[top : top + height, left : left + width].sum() == full.sum() and min(width, height) > 0


@given(points=st.lists(st.tuples(st.floats(-1, 41), st.floats(-1, 33)), min_size=3, max_size=9))
@settings(max_examples=60, deadline=None)
def test_a_polygon_in_its_window_is_the_library_s(points):
    from pycocotools import mask as coco

    ring = [float(value) for point in points for value in point]
    found, window = segmentation_mask([ring], 32, 40)
    again = np.zeros((32, 40), bool)
    again[window] = found
    whole = coco.decode(coco.merge(coco.frPyObjects([ring], 32, 40))).astype(bool)
    np.testing.assert_array_equal(again, whole)
