"""Importers: each format by hand, and every problem at once."""

import json

import numpy as np
import pytest
from PIL import Image

from companion.errors import CompanionError
from companion.evaluation.formats import read_truth
from companion.micrographs.formats import FORMATS
from companion.micrographs.importers import fitting_size, import_dataset, parse_merge

SQUARE = [10, 10, 20, 10, 20, 20, 10, 20]
CLASSES = ("loop", "dot")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a_70kx.png", "b_300kx.tif"):
        Image.fromarray(rng.integers(0, 255, (48, 64)).astype(np.uint8)).save(folder / name)
    return folder


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def truths(dataset):
    """Per image: (class code, area) of each instance."""
    found = {}
    for micrograph in dataset.micrographs:
        truth = micrograph.instances()
        areas = np.bincount(truth.ids.ravel(), minlength=len(truth.codes))[1:]
        found[micrograph.file_name] = list(zip(truth.codes[1:].tolist(), areas.tolist(), strict=True))
    return found


OTHER = [40, 10, 50, 10, 50, 20, 40, 20]
BOTH = dict(zip(CLASSES, (SQUARE, OTHER), strict=True))


def labels_of(format, folder):
    """The same two squares in every format."""
    if format == "coco":
        document = {
            "images": [{"id": 5, "file_name": "C:\\data\\a_70kx.png", "width": 64, "height": 48},
                       {"id": 6, "file_name": "b_300kx.tif", "width": 64, "height": 48}],
            "annotations": [{"id": 1, "image_id": 5, "category_id": 3, "segmentation": [SQUARE]},
                            {"id": 2, "image_id": 5, "category_id": 1, "segmentation": [OTHER]}],
            "categories": [{"id": 1, "name": "dot"}, {"id": 3, "name": "loop"}],
        }  # fmt: skip
        return written(folder / "coco.json", document)
    if format in ("labelmap", "instances"):
        pixels = np.zeros((48, 64), np.uint8)
        pixels[10:20, 10:20], pixels[10:20, 40:50] = (128, 255) if format == "labelmap" else (7, 44)
        (folder / "maps").mkdir()
        Image.fromarray(pixels).save(folder / "maps" / "a_70kx.png")
        Image.fromarray(np.zeros((48, 64), np.uint16)).save(folder / "maps" / "b_300kx.tif")
        return folder / "maps"
    if format == "yolo-seg":
        lines = [f"{code} " + " ".join(f"{v / (48 if k % 2 else 64):.6f}" for k, v in enumerate(polygon))
                 for code, polygon in enumerate(BOTH.values())]  # fmt: skip
        written(folder / "yolo" / "a_70kx.txt", "\n".join(lines) + "\n\n")
        return folder / "yolo"
    if format == "yolo-boxes":
        boxes = "0 0.234375 0.3125 0.15625 0.2083334\n1 0.703125 0.3125 0.15625 0.2083334\n"
        return written(folder / "yolo" / "a_70kx.txt", boxes).parent
    if format == "labelme":
        shapes = [{"label": name, "points": np.reshape(p, (-1, 2)).tolist(), "shape_type": "polygon", "group_id": None}
                  for name, p in BOTH.items()]  # fmt: skip
        sides = {"imagePath": "..\\a_70kx.png", "imageData": None, "imageHeight": 48, "imageWidth": 64}
        return written(folder / "me" / "a_70kx.json", {"version": "5.4.1", "shapes": shapes, **sides}).parent
    if format == "imagej":
        roifile = pytest.importorskip("roifile")
        from_points = roifile.ImagejRoi.frompoints
        rois = [from_points(np.reshape(p, (-1, 2)), name=f"{name}-0001") for name, p in BOTH.items()]
        (folder / "rois").mkdir()
        roifile.roiwrite(folder / "rois" / "a_70kx.zip", rois)
        return folder / "rois"
    if format == "via3":
        marks = {f"1_{k}": {"vid": "1", "xy": [7, *p], "av": {"1": str(k)}} for k, p in enumerate(BOTH.values())}
        files = {"1": {"fid": "1", "fname": "a_70kx.png"}, "2": {"fid": "2", "fname": "b_300kx.tif"}}
        options = {"1": {"aname": "kind", "options": {"0": "loop", "1": "dot"}}}
        view = {k: {"fid_list": [k]} for k in files}
        project = {"project": {}, "attribute": options, "file": files, "metadata": marks, "view": view}
        return written(folder / "via3.json", project)
    if format == "via":
        regions = [
            {"shape_attributes": {"name": "polygon", "all_points_x": p[::2], "all_points_y": p[1::2]},
             "region_attributes": {"kind": name, "sure": "yes"}}
            for name, p in BOTH.items()
        ]  # fmt: skip
        regions[1]["region_attributes"] = {"kind": {"dot": True, "loop": False}}
        entries = {"x1": {"filename": "a_70kx.png", "size": 1, "regions": regions},
                   "x2": {"filename": "b_300kx.tif", "size": 1, "regions": {}}}  # fmt: skip
        return written(folder / "via.json", {"_via_img_metadata": entries})
    boxes = [{"bbox": [0, 0, 9, 9], "bbox_mode": 0, "category_id": k, "segmentation": [p]}
             for k, p in enumerate(BOTH.values())]  # fmt: skip
    return written(folder / "d2.json", [
        {"file_name": "/home/x/a_70kx.png", "height": 48, "width": 64, "image_id": 0, "annotations": boxes},
        {"file_name": "b_300kx.tif", "image_id": 1, "annotations": []},
    ])  # fmt: skip


@pytest.mark.parametrize("format", [*FORMATS, "via3"])
def test_every_format_gives_the_same_data_set(format, images, tmp_path):
    labels, classes = labels_of(format, tmp_path), CLASSES[: 1 if format == "instances" else 2]
    dataset = import_dataset(format[:3] if format == "via3" else format, images, labels, classes, 0.5, tmp_path / "out")
    assert dataset.classes == classes
    codes = (1, 1) if format == "instances" else (1, 2)  # instance numbers tell no class
    assert truths(dataset) == {"a_70kx.png": [(code, 100) for code in codes], "b_300kx.tif": []}
    assert {m.pixel_size_nm for m in dataset.micrographs} == {0.5}
    # What an import writes, an import reads, with ids, names and sub-folders as they were.
    again = import_dataset("coco", tmp_path / "out" / "images", tmp_path / "out" / "annotations.json", None, None,
                           tmp_path / "again")  # fmt: skip
    assert [m.annotations for m in again.micrographs] == [m.annotations for m in dataset.micrographs]
    assert (again.classes, again.files) == (dataset.classes, dataset.files)
    truth = read_truth(tmp_path / "again")  # and `companion evaluate` takes it
    assert truth.table[["x1", "y1", "x2", "y2"]].values.tolist() == [[10, 10, 20, 20], [40, 10, 50, 20]]
    assert [image["file_name"] for image in truth.images.values()] == dataset.files
    assert {a["category_id"] for m in again.micrographs for a in m.annotations} == (
        {3, 1} if format == "coco" else set(range(1, len(classes) + 1)))  # fmt: skip


def test_pixel_sizes_per_image_and_what_cannot_be_used(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "sizes.csv", "file_name,pixel_size_nm\na_70kx.png,0.8805\nb_300kx.tif,0.4785\n")
    labels = labels_of("via", tmp_path)
    for number, given in enumerate(("70kx=0.8805, 300kx=0.4785", "sizes.csv")):
        dataset = import_dataset("via", images, labels, CLASSES, given, tmp_path / f"out{number}")
        assert [m.pixel_size_nm for m in dataset.micrographs] == [0.8805, 0.4785]
    for given, message in (
        (-1.0, r"a_70kx.png: pixel_size_nm should be a positive number"),
        ("70kx=0.8", r"b_300kx.tif: its name should contain one of 70kx"),
        ("large", r"pixel size 'large' should be a number"),
        ("gone.csv", r"pixel size 'gone.csv' should be .*No such file"),
    ):
        with pytest.raises(CompanionError, match=message):
            import_dataset("via", images, labels, CLASSES, given, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp*"))
    sizes = {"70kx": 0.88, "0.70kx": 3.0}
    assert fitting_size("a_70KX.png", sizes) == 0.88 and fitting_size("c-0.70kx.png", sizes) == 3.0
    with pytest.raises(CompanionError):
        fitting_size("b_170kx.png", sizes)


def test_colour_files_become_grey_when_their_channels_are_equal(images, tmp_path):
    grey = np.random.default_rng(1).integers(0, 255, (48, 64)).astype(np.uint8)
    square = {"shape_attributes": {"name": "circle", "cx": 9, "cy": 9, "r": 4}, "region_attributes": {"kind": "dot"}}
    Image.fromarray(np.stack([grey] * 3, axis=2)).save(images / "c.png")
    Image.fromarray(np.stack([grey, 255 - grey, grey], axis=2)).save(images / "d.png")
    labels = written(tmp_path / "via.json", {n: {"filename": f"{n}.png", "regions": [square]} for n in "cd"})
    with pytest.raises(CompanionError, match=r"d.png is a colour picture"):
        import_dataset("via", images, labels, CLASSES, 1, tmp_path / "out")
    labels = written(tmp_path / "via.json", {"c": {"filename": "c.png", "regions": [square]}})
    dataset = import_dataset("via", images, labels, CLASSES, 1, tmp_path / "out")
    np.testing.assert_array_equal(dataset.micrographs[0].read(), grey)


def test_every_problem_of_a_folder_at_once(images, tmp_path):
    text = "7 0.1 0.1 0.2 0.1 0.2 0.2\n0 0.1 0.1\nloop 1 2\n1 0.1 0.1 0.2 0.1 0.2 1.5\n"
    labels = written(tmp_path / "yolo" / "a_70kx.txt", text).parent
    written(labels / "z.txt", "")
    with pytest.raises(CompanionError) as caught:
        import_dataset("yolo-seg", images, labels, CLASSES, 1, tmp_path / "out")
    for part in (
        "5 problem(s), nothing imported", "z.txt: there is no image of that name",
        "a_70kx.txt, line 3: 'loop 1 2' is not a class and x, y pairs", "a_70kx.png, instance 1: its class 7 is not",
        "a_70kx.txt, line 2: '0 0.1 0.1' is not a class and x, y pairs",
        "annotation 2: a polygon reaches outside the 64 x 48 px image",
    ):  # fmt: skip
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()
    maps = labels_of("labelmap", tmp_path)
    pixels = np.zeros((48, 64), np.uint8)
    pixels[0, :3] = 10, 20, 30
    Image.fromarray(pixels).save(maps / "a_70kx.png")
    (maps / "b_300kx.tif").rename(maps / "other.tif")
    said = r"(?s)other.tif: there is no image.*b_300kx.tif: .* has no label map.*3 values \(10, 20, 30\), which do not"
    with pytest.raises(CompanionError, match=said):
        import_dataset("labelmap", images, maps, CLASSES, 1, tmp_path / "out")


def test_via_shapes_and_their_problems(images, tmp_path):
    def region(shape, kind="loop"):
        return {"shape_attributes": shape, "region_attributes": {"kind": kind}}

    ellipse = {"name": "ellipse", "cx": 30, "cy": 24, "rx": 12, "ry": 5, "theta": np.pi / 2}
    circle = {"name": "circle", "cx": 10, "cy": 10, "r": 6}
    entry = {"filename": "a_70kx.png", "regions": [region(ellipse), region(circle)]}
    labels = written(tmp_path / "via.json", {"a": entry})
    dataset = import_dataset("via", images, labels, CLASSES, 1, tmp_path / "out")
    (_, turned), (_, round_) = truths(dataset)["a_70kx.png"]
    assert turned == pytest.approx(np.pi * 60, rel=0.05) and round_ == pytest.approx(np.pi * 36, rel=0.05)
    ids = dataset.micrographs[0].instances().ids
    assert ids[34, 30] == 1 and ids[24, 38] == 0
    entry["regions"] = [region({"name": "rect", "x": 1}), region(circle, "spot"), region({"name": "circle", "cx": 3})]
    labels = written(tmp_path / "via.json", {"a": entry})
    said = r"(?s)3 problem.*region 1, rect: only polygon.*region 3, circle: only.*1: its class \['spot'\] is not"
    with pytest.raises(CompanionError, match=said):
        import_dataset("via", images, labels, CLASSES, 1, tmp_path / "again")


def test_problems_of_detectron2_and_coco_and_what_cannot_even_be_started(images, tmp_path):
    via = labels_of("via", tmp_path)
    entry = {"file_name": "a_70kx.png", "annotations": [{"category_id": 2, "segmentation": [SQUARE]}]}
    d2 = written(tmp_path / "d2.json", [entry, {"file_name": "gone.png"}])
    coco = json.loads(labels_of("coco", tmp_path).read_text())
    coco["annotations"][0]["category_id"] = 9
    coco["annotations"][1]["segmentation"] = [[90, 10, 99, 10, 99, 20]]
    for given, message in (
        (("detectron2", images, d2, CLASSES), r"(?s)2 problem.*instance 1: its class 2 is.*gone.png: missing from"),
        (("coco", images, written(tmp_path / "c.json", coco), None),
         r"(?s)2 problem.*its class category_id 9 is not.*reaches outside"),
        (("vai", images, via, CLASSES), r"format 'vai': did you mean 'via'"),
        (("via", tmp_path / "x", via, CLASSES), r"no folder of images .*x, or no"),
        (("via", images, tmp_path / "x", CLASSES), r"no annotations at .*x$"),
        (("via", images, via, ()), r"format via needs the names of the classes"),
        (("via", images, written(tmp_path / "bad.json", "{"), CLASSES), r"bad.json is not a readable JSON file"),
        (("detectron2", images, via, CLASSES), r"is not a list of detectron2"),
    ):  # fmt: skip
        with pytest.raises(CompanionError, match=message):
            import_dataset(*given, 1, tmp_path / "out")


def test_sub_labels_of_a_coco_file_are_merged(images, tmp_path):
    names = {1: "edge-on", 2: "face-on", 3: "<111> loop"}
    document = {
        "images": [{"id": 1, "file_name": "a_70kx.png", "width": 64, "height": 48}],
        "annotations": [{"id": k, "image_id": 1, "category_id": k, "segmentation": [SQUARE]} for k in names],
        "categories": [{"id": k, "name": name} for k, name in names.items()],
    }
    labels, parts = written(tmp_path / "split.json", document), parse_merge("edge-on, face-on=<100> loop")
    made = import_dataset("coco", images, labels, None, 0.5, tmp_path / "merged", parts)
    assert made.classes == ("<100> loop", "<111> loop")
    assert [a["category_id"] for a in made.micrographs[0].annotations] == [1, 1, 3]
    into = import_dataset("coco", images, labels, None, 0.5, tmp_path / "into", {"edge-on": "face-on"})
    assert into.classes == ("face-on", "<111> loop")
    said = r"(?s)class 'edgeon' is not among .* did you mean 'edge-on'.*class 'face-on' is not among"
    with pytest.raises(CompanionError, match=said):
        wrong = {"edgeon": "<100> loop", "face-on": "<111> loop"}
        import_dataset("coco", images, labels, ["face-on"], 0.5, tmp_path / "x", wrong)
    assert not (tmp_path / "x").exists()
    for text in ("edge-on", "a,=b", "a=b=c", "a=b;a=c"):
        with pytest.raises(CompanionError, match=r"is not sub-labels=class, each once"):
            parse_merge(text)


def test_coco_keeps_the_classes_asked_for_and_ids_and_folders(images, tmp_path):
    (images / "deep").mkdir()
    (images / "a_70kx.png").rename(images / "deep" / "a_70kx.png")
    document = json.loads(labels_of("coco", tmp_path).read_text())
    document["images"][0]["file_name"] = "deep/a_70kx.png"
    labels = written(tmp_path / "coco.json", document)
    dataset = import_dataset("coco", images, labels, ["dot"], 0.25, tmp_path / "out")
    assert dataset.classes == ("dot",) and dataset.files == ["deep/a_70kx.png", "b_300kx.tif"]
    assert [a["id"] for a in dataset.micrographs[0].annotations] == [2]
    again = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [image["id"] for image in again["images"]] == [5, 6]
    with pytest.raises(CompanionError, match=r"class 'loops' is not among"):
        import_dataset("coco", images, labels, ["loops"], 0.25, tmp_path / "none")
    with pytest.raises(CompanionError, match=r"exists already"):
        import_dataset("coco", images, labels, None, 0.25, tmp_path / "out")
    document["images"][1]["file_name"] = "../pictures/deep/a_70kx.png"  # a name may not lead out of the folder
    with pytest.raises(CompanionError, match=r"another image becomes a_70kx.png"):
        import_dataset("coco", images, written(labels, document), None, 0.25, tmp_path / "none")
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".tmp*"))
