"""Files as microscopes, tools and accidents leave them: the right values, or one message in words."""

import copy
import json
import random

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_micrographs_importers import CLASSES, OTHER, SQUARE, images, labels_of, truths, written  # noqa: F401

from companion.errors import CompanionError
from companion.micrographs.coco import outline_problem
from companion.micrographs.images import data_bar, read_grey, read_label_map, read_micrograph, to_uint8
from companion.micrographs.importers import import_dataset

GREY = np.random.default_rng(0).integers(0, 200, (48, 64)).astype(np.uint8)
CIRCLE = {"shape_attributes": {"name": "circle", "cx": 12, "cy": 12, "r": 5}, "region_attributes": {}}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_zero_is_white_where_the_tag_says_so(dtype, tmp_path):
    ramp = np.tile(np.linspace(0, np.iinfo(dtype).max, 64), (8, 1)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", ramp, photometric="miniswhite")
    tags = {262: 0} if dtype != np.uint8 else {}
    Image.fromarray(ramp).save(tmp_path / "b.tif", compression="tiff_lzw", tiffinfo=tags)
    assert to_uint8(read_grey(tmp_path / "a.tif"))[0, [0, -1]].tolist() == [255, 0]
    assert to_uint8(read_grey(tmp_path / "b.tif"))[0, 0] == (0 if dtype == np.uint8 else 255)  # by Pillow


def test_signed_and_float_pictures_previews_stacks_and_damage(tmp_path):
    path = tmp_path / "a.tif"
    for values in (GREY.astype(np.int16) - 100, GREY / np.float32(1000), GREY.astype(np.uint32) + 70000):
        tifffile.imwrite(path, values)
        assert read_grey(path).dtype == np.float32
        difference = to_uint8(read_grey(path)).astype(float) - to_uint8(GREY.astype(np.uint16))
        assert np.abs(difference).max() <= 1
    tifffile.imwrite(path, GREY.astype(np.int16))
    assert read_grey(path).dtype == np.uint16
    with tifffile.TiffWriter(path) as file:
        file.write(GREY)
        file.write(GREY[:8, :8].copy(), subfiletype=1)  # a preview
    np.testing.assert_array_equal(read_grey(path), GREY)
    tifffile.imwrite(path, np.stack([GREY, GREY]), imagej=True, truncate=True)
    with pytest.raises(CompanionError, match=r"a.tif is a stack of 2 pictures"):
        read_grey(path)
    tifffile.imwrite(path, GREY)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CompanionError, match=r"a.tif is not a readable image: it ends before its last row"):
        read_grey(path)
    (tmp_path / "a.dm3").write_bytes(bytes([0, 0, 0, 3]) + bytes(99))
    with pytest.raises(CompanionError, match=r"companion\[microscopy\]|a.dm3 is not a readable image"):
        read_grey(tmp_path / "a.dm3")


def test_the_one_picture_of_a_microscope_s_file_is_read_with_its_scale(tmp_path, monkeypatch):
    reader = pytest.importorskip("rsciio.mrc")

    def signal(data, *units):
        axes = [{"size": n, "scale": 0.25, "units": unit} for n, unit in zip(data.shape, units, strict=True)]
        return {"data": data, "axes": axes, "metadata": {"General": {"title": "HAADF"}}}

    picture, other = signal(GREY.astype(np.int32), "Å", "Å"), signal(GREY * 1j, "1/nm", "1/nm")
    spectra, lost = signal(GREY, "nm", "eV"), signal(GREY, "m", "m")
    (tmp_path / "a.mrc").touch()
    held = []
    monkeypatch.setattr(reader, "file_reader", lambda path: held)
    for held[:], scale in (([picture, other, spectra], 0.025), ([lost], None)):  # a diffraction pattern
        read = read_micrograph(tmp_path / "a.mrc")
        assert (read.pixels == GREY).all() and read.pixel_size_nm == scale
    for held[:] in ([spectra], [picture, lost], [signal(np.stack([GREY, GREY]), "", "nm", "nm")]):
        with pytest.raises(CompanionError, match=r"a.mrc holds HAADF .*: save the one grey picture"):
            read_micrograph(tmp_path / "a.mrc")


def test_the_pixel_size_of_a_file_counts_and_a_contradiction_is_named(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    scaled = {"imagej": True, "resolution": (4, 4), "metadata": {"unit": "nm"}}
    tifffile.imwrite(pictures / "a.tif", GREY, **scaled)
    tifffile.imwrite(pictures / "b.tif", GREY, metadata={"PhysicalSizeX": 0.5e-3, "PhysicalSizeXUnit": "µm"}, ome=True)
    gatan = [(65003, 2, 3, "nm", True), (65009, 12, 1, 0.75, True)]
    tifffile.imwrite(pictures / "c.tif", GREY, extratags=gatan, resolution=(72, 72), metadata=None)
    labels = written(tmp_path / "via.json", {n: {"filename": f"{n}.tif", "regions": [CIRCLE]} for n in "abc"})
    made = import_dataset("via", pictures, labels, ["loop"], None, tmp_path / "out")
    assert [m.pixel_size_nm for m in made.micrographs] == [0.25, 0.5, 0.75] and made.card["notes"] == []
    made = import_dataset("via", pictures, labels, ["loop"], 0.5, tmp_path / "said")
    assert made.card["notes"] == [
        "the file says 0.25 nm per px, 0.5 is taken: 1 (a.tif)",
        "the file says 0.75 nm per px, 0.5 is taken: 1 (c.tif)",
    ]  # fmt: skip
    assert {m.pixel_size_nm for m in made.micrographs} == {0.5}


def test_a_data_bar_is_noted_and_cropped_with_its_labels(tmp_path):
    shown = np.random.default_rng(0).integers(100, 160, (300, 256)).astype(np.uint8)
    shown[272:] = 0
    shown[280:290, 60:100] = 255
    assert data_bar(shown) == 28 and data_bar(shown[:272]) == 0 and data_bar(shown[:272] // 50 * 50) == 0
    (tmp_path / "pictures").mkdir()
    Image.fromarray(shown).save(tmp_path / "pictures" / "a.png")
    low = {"shape_attributes": {"name": "circle", "cx": 90, "cy": 285, "r": 6}, "region_attributes": {}}
    edge = {"shape_attributes": {"name": "circle", "cx": 90, "cy": 272, "r": 6}, "region_attributes": {}}
    labels = written(tmp_path / "via.json", {"a": {"filename": "a.png", "regions": [CIRCLE, low, edge]}})
    noted = import_dataset("via", tmp_path / "pictures", labels, ["loop"], 1, tmp_path / "whole")
    assert noted.card["notes"] == [
        "its lowest 28 rows look like a data bar: --crop-bottom auto leaves them out: 1 (a.png)"
    ]
    made = import_dataset("via", tmp_path / "pictures", labels, ["loop"], 1, tmp_path / "out", crop_bottom="auto")
    assert made.micrographs[0].read().shape == (272, 256) and len(truths(made)["a.png"]) == 2
    assert "outlines without a pixel, left out: 1 (a.png)" in made.card["notes"]


def test_outlines_that_leave_the_image_by_up_to_a_tenth_are_cut_off():
    square = [4.0, 4, 24, 4, 24, 24, 4, 24]
    for shift, share in ((-5, ""), (-7, "15%"), (-40, "100%"), (1e9, "100%")):
        said = outline_problem([[v + shift * (k % 2 == 0) for k, v in enumerate(square)]], 64, 64)
        assert share in said and bool(share) == bool(said)


def test_a_path_beats_a_bare_name_and_one_that_fits_two_files_is_refused(tmp_path):
    for k, name in enumerate(("a.png", "batch2/a.png", "batch3/ä b.png", "x/c.png", "y/c.png")):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY + k).save(tmp_path / "p" / name)
    (tmp_path / "p" / "._a.png").write_bytes(b"a Mac's")
    names = {"D:\\data\\Batch2\\A.png": "batch2/a.png", "a.png": "a.png",
             "/data/local-files/?d=batch3/a%CC%88%20b.png": "batch3/ä b.png"}  # fmt: skip
    labels = written(tmp_path / "v.json", {n: {"filename": n, "regions": [CIRCLE]} for n in names})
    made = import_dataset("via", tmp_path / "p", labels, ["loop"], 1, tmp_path / "out")
    assert made.files == list(names.values()) and made.micrographs[0].read()[0, 0] == GREY[0, 0] + 1
    for name, said in (
        ("c.png", r"x/c.png and y/c.png could be meant"), ("a.jpg", r"did you mean a.png\?"),
        ("batch1/ä b.png", r"missing from .*did you mean batch3/ä b.png\?"),
    ):  # fmt: skip
        labels = written(tmp_path / "v.json", {"x": {"filename": name, "regions": [CIRCLE]}})
        with pytest.raises(CompanionError, match=said):
            import_dataset("via", tmp_path / "p", labels, ["loop"], 1, tmp_path / "none")


def test_an_import_without_a_label_says_what_was_looked_for(images, tmp_path):  # noqa: F811
    labels = labels_of("yolo-seg", tmp_path)
    (labels / "train").mkdir()
    (labels / "a_70kx.txt").rename(labels / "train" / "a_70kx.txt")
    with pytest.raises(CompanionError, match=r"holds no .txt file with the name of any of 2 pictures.*train does"):
        import_dataset("yolo-seg", images, labels, CLASSES, 1, tmp_path / "out")
    with pytest.raises(CompanionError, match=r"no label of loop, dot in it, for 1 micrograph"):
        empty = written(tmp_path / "e.json", {"a": {"filename": "a_70kx.png", "regions": None}})
        import_dataset("via", images, empty, CLASSES, 1, tmp_path / "out")


def test_label_maps_that_do_not_say_their_classes_are_refused(images, tmp_path):  # noqa: F811
    maps = labels_of("labelmap", tmp_path)
    pixels = np.zeros((48, 64), np.uint8)
    for values, classes, said in (
        ((255, 255), CLASSES, r"hold 255 alone, a mask without classes"),
        ((1, 2), ["loop"], r"instance numbers \(--form"),
        ((1, 77), ["loop"], r"2 values \(1, 77\).*smoothed"),
    ):  # fmt: skip
        pixels[10:20, 10:20], pixels[10:20, 40:50] = values
        Image.fromarray(pixels).save(maps / "a_70kx.png")
        with pytest.raises(CompanionError, match=said):
            import_dataset("labelmap", images, maps, classes, 1, tmp_path / "out")
    indexed = Image.fromarray(np.where(pixels == 77, 2, pixels).astype(np.uint8), "P")
    indexed.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    indexed.save(maps / "a_70kx.png")
    assert np.unique(read_label_map(maps / "a_70kx.png")).tolist() == [0, 1, 2]
    made = import_dataset("labelmap", images, maps, CLASSES, 1, tmp_path / "out")
    assert truths(made)["a_70kx.png"] == [(1, 100), (2, 100)]
    assert made.card["notes"] == ["values of the label maps: 1 (1 is loop, 2 is dot)"]


def test_slips_whose_meaning_is_clear_are_read_and_categories_that_are_none_left_out(images, tmp_path):  # noqa: F811
    document = json.loads(labels_of("coco", tmp_path).read_text())
    document["categories"] += [{"id": 0, "name": "defects"}, {"id": 9, "name": "_background_"}]
    document["categories"][0]["supercategory"] = "defects"
    first, second = document["annotations"]
    first |= {"image_id": "5", "segmentation": SQUARE}  # as VIA 2 exports COCO
    column = [48.0 * 40 + 10, 10, 48.0 * 64 - 48 * 40 - 20]
    second |= {"iscrowd": 1, "segmentation": {"size": [48, 64], "counts": column}}  # as CVAT exports brush masks
    labels = tmp_path / "c.json"
    labels.write_bytes(b"\xef\xbb\xbf" + json.dumps(document).encode())
    made = import_dataset("coco", images, labels, None, 1, tmp_path / "out")
    assert made.classes == ("dot", "loop") and truths(made)["a_70kx.png"] == [(2, 100), (1, 10)]
    assert [a["iscrowd"] for a in made.micrographs[0].annotations] == [0, 0]
    assert [a["bbox"] for a in made.micrographs[0].annotations] == [[10, 10, 10, 10], [40, 10, 1, 10]]
    assert len(made.card["notes"]) == 2


ODD = (None, "", "x", -1, 1e30, float("nan"), True, [], {}, [[]], [1, 2, 3], "../x")


def places(value, at=()):
    yield at
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(below, (*at, key))


def mutations(good: bytes, rng: random.Random):
    """Files that differ a little from a good one: another value somewhere, other bytes, the end cut off."""
    if good[:1] in b"[{":
        whole = json.loads(good)
        for at in rng.sample(list(places(whole))[1:], 20):
            changed = copy.deepcopy(whole)
            inner = changed
            for key in at[:-1]:
                inner = inner[key]
            inner[at[-1]] = rng.choice(ODD)
            yield json.dumps(changed).encode()
    for _ in range(20):
        changed = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            changed[rng.randrange(len(good))] = rng.randrange(256)
        yield bytes(changed[: rng.choice([len(good), rng.randrange(len(good))])])


@pytest.mark.parametrize("format", ["coco", "labelmap", "yolo-seg", "via", "via3", "labelme", "detectron2", "imagej"])
def test_no_mutation_of_a_good_file_ends_in_a_traceback(format, images, tmp_path):  # noqa: F811
    labels, rng = labels_of(format, tmp_path), random.Random(1)
    file = labels if labels.is_file() else min(labels.iterdir())
    for part, of in enumerate((file, images / "a_70kx.png", images / "b_300kx.tif")):
        good = of.read_bytes()
        for number, changed in enumerate(mutations(good, rng)):
            of.write_bytes(changed)
            out = tmp_path / f"out{part}-{number}"
            try:
                import_dataset(format.removesuffix("3"), images, labels, CLASSES, 0.5, out)
            except CompanionError as error:
                assert len(str(error).splitlines()) <= 22 and not out.exists()
        of.write_bytes(good)
