"""The phantom: geometry by hand, reproducible bytes, defects that can be seen."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from conftest import ellipse, patches_of

from companion.config.phantom import PRESETS, Annotator, Phantom
from companion.diffusion.measures import across_outlines
from companion.errors import CompanionError
from companion.micrographs.check import label_errors
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.patches import Patches
from companion.phantom import contrast, optics
from companion.phantom.annotator import annotate, miss_probability, truth
from companion.phantom.contrast import Defect
from companion.phantom.crystal import BEAMS, BLACK_DOT, LOOP_100, LOOP_111, NORMALS, g_dot_b, projected
from companion.phantom.paint import ellipses, paint_masks
from companion.phantom.render import TRUTH, render_dataset
from companion.phantom.scene import draw_scene
from companion.seeds import Seeds


def unit(values) -> np.ndarray:
    array = np.array(values, dtype=float)
    return array / np.linalg.norm(array)


def loop(look: str, x: float, y: float, **changes) -> Defect:
    plain = {"major_px": 22.0, "minor_px": 22.0, "angle_deg": 0.0, "rim_px": 3.0, "inner": 0.3,
             "amplitude": 0.4, "blur_px": 0.5, "g_deg": 20.0, "bean": 0.0, "side": 0.0}  # fmt: skip
    return Defect(LOOP_111, look, x, y, **{**plain, **changes})


def ratios(code: int, beam: str) -> list[float]:
    return sorted(projected(n, *map(unit, BEAMS[beam]))[0] for n in NORMALS[code])


@pytest.mark.parametrize(("beam", "loops100", "loops111"), [
    ("001", [0, 0, 1], [0.5774] * 4), ("110", [0, 0.7071, 0.7071], [0, 0, 0.8165, 0.8165]),
    ("111", [0.5774] * 3, [1 / 3, 1 / 3, 1 / 3, 1]),
])  # fmt: skip
def test_projected_aspects_of_all_variants(beam, loops100, loops111):
    assert ratios(LOOP_100, beam) == pytest.approx(loops100, abs=1e-4)
    assert ratios(LOOP_111, beam) == pytest.approx(loops111, abs=1e-4)
    if beam == "001":  # <111> loops lie 45 degrees from the <100> bars
        angles = [{round(projected(n, *map(unit, BEAMS[beam]))[1]) for n in NORMALS[code]} for code in (1, 2)]
        assert angles[0] >= {0, 90} and angles[1] == {45, 135}


def test_one_azimuth_ties_the_orientations_of_an_image_together():
    parameters = Phantom(size_px=1024, tilt_jitter_deg=0.5, zone_error_deg=0.0, density_spread=0.0)
    scene = draw_scene(parameters, Seeds(1, "phantom"), 1)
    relative = [(d.angle_deg - scene.azimuth_deg) % 90 for d in scene.defects if d.code == LOOP_111]
    assert len(relative) > 30
    assert np.abs(np.array(relative) - 45).max() < 5
    bars = [(d.angle_deg - scene.azimuth_deg + 45) % 90 for d in scene.defects if d.look == "edge-on"]
    assert np.abs(np.array(bars) - 45).max() < 5


def test_sizes_and_shares_are_those_asked_for():
    parameters = Phantom(size_px=2048, defects_per_megapixel=300, density_spread=0.0)
    scene = draw_scene(parameters, Seeds(2, "phantom"), 1)
    assert all(d.minor_px <= d.major_px for d in scene.defects)
    codes = np.array([d.code for d in scene.defects])
    shares = np.bincount(codes, minlength=4)[1:] / len(codes)
    assert shares == pytest.approx(parameters.class_shares, abs=0.06)
    for code, span in ((LOOP_100, parameters.loop100_nm), (LOOP_111, parameters.loop111_nm),
                       (BLACK_DOT, parameters.black_dot_nm)):  # fmt: skip
        sizes = np.array([d.major_px * 0.8805 for d in scene.defects if d.code == code])
        assert np.median(sizes) == pytest.approx(span[1], rel=0.12)
        assert sizes.min() >= span[0] - 1e-9 and sizes.max() <= span[2] + 1e-9


def test_contrast_lies_where_the_mask_is():
    defect = loop("filled", 40.0, 30.0, major_px=24.0, minor_px=14.0, angle_deg=30.0, inner=1.0)
    loss = contrast.superposed([contrast.defect_contrast(defect, 64)], 64)
    inside = ellipse((64, 64), 40.0, 30.0, 24.0, 14.0, 30.0)
    assert ((loss > 0.2) & inside).sum() / ((loss > 0.2) | inside).sum() > 0.93
    assert loss.sum() == pytest.approx(0.4 * np.pi * 12 * 7, rel=0.03)


def test_the_line_of_no_contrast_lies_across_the_diffraction_vector():
    for g in (20.0, 65.0, 130.0):
        stamp, (rows, columns) = contrast.defect_contrast(loop("rim", 32.0, 32.0, bean=0.8, g_deg=g), 64)
        y, x = np.mgrid[rows, columns] - 31.5
        angle = np.arctan2(-y, x)
        lobes = np.rad2deg(np.angle((stamp * np.exp(2j * angle)).sum())) / 2
        assert (lobes - g + 90) % 180 - 90 == pytest.approx(0, abs=2)
        along, across = (np.abs(np.cos(angle - np.deg2rad(g + turn))) > 0.98 for turn in (0, 90))
        assert stamp[across].sum() < 0.5 * stamp[along].sum()
    stamp, _ = contrast.defect_contrast(loop("dot", 32.0, 32.0, major_px=10, minor_px=10, g_deg=0.0, side=0.8), 64)
    left, right = np.array_split(stamp, 2, axis=1)
    assert left.min() < -0.1 and right.min() > -0.02, "the white lobe of a dot lies on one side along g"
    two_sided, one_sided = (contrast.defect_contrast(loop("rim", 32.0, 32.0, side=s), 64)[0] for s in (0.0, 0.5))
    assert one_sided.sum() == pytest.approx(two_sided.sum(), rel=0.01) and one_sided.max() > 1.2 * two_sided.max()


def test_one_diffraction_vector_per_grain_decides_where_contrast_is_lost():
    parameters = Phantom(size_px=1024, frames_per_grain=2, tilt_jitter_deg=0.5, zone_error_deg=0.0)
    lost: dict[int, list[float]] = {LOOP_100: [], LOOP_111: []}
    assert abs(g_dot_b(1 / np.sqrt(3), 45.0, 135.0)) == pytest.approx(np.sqrt(2 / 3))  # an inclined loop
    for number in range(1, 17, 2):
        scene, twin = (draw_scene(parameters, Seeds(6, "phantom"), n) for n in (number, number + 1))
        assert {d.g_deg for d in (*scene.defects, *twin.defects, *scene.large_loops)} == {scene.g_deg}
        relative = (scene.g_deg - scene.azimuth_deg) % 45
        assert min(relative, 45 - relative) < 1e-6, "along a <110> or a <100> direction of [001]"
        for d in scene.defects:
            if d.look == "rim":
                lost[d.code].append(d.bean)
    face_on, inclined = np.array(lost[LOOP_100]), np.array(lost[LOOP_111])
    assert face_on.min() > 0.7, "b of a face-on <100> loop is along the beam: g.b = 0"
    assert inclined.min() < 0.2 and inclined.max() > 0.7, "of <111> loops some have b across g"


@pytest.mark.parametrize("preset", ["binned", "hard"])
def test_no_defect_is_fainter_than_the_least_visibility(preset):
    p = Phantom(preset=preset, size_px=512)
    flat = loop("filled", 32.0, 32.0, inner=1.0, major_px=40.0, minor_px=40.0, amplitude=0.1, blur_px=0.3)
    assert contrast.visibility(flat, 100.0, 0.0) == pytest.approx(0.1 * np.sqrt(100 * np.pi * 20**2), rel=0.03)
    assert contrast.visibility(flat, 1e9, 0.02) == pytest.approx(5, rel=0.02)
    structure, free = float(np.hypot(p.texture, p.stripes)), p.model_copy(update={"min_visibility": 0.0})
    below = 0
    for number in (1, 2, 3):
        scene, fainter = (draw_scene(q, Seeds(3, "phantom"), number) for q in (p, free))
        assert [replace(d, amplitude=0.0) for d in scene.defects] == [replace(d, amplitude=0) for d in fainter.defects]
        seen = [contrast.visibility(d, scene.dose_electrons, structure) for d in scene.defects]
        assert min(seen) >= p.min_visibility - 1e-9 and max(d.amplitude for d in scene.defects) <= 0.5
        free_ones = [contrast.visibility(d, scene.dose_electrons, structure) for d in fainter.defects]
        below += sum(seen < p.min_visibility for seen in free_ones)
    assert below > 0, "the limit changes something"


def test_overlapping_defects_are_not_multiplied_like_glass():
    whole = np.s_[:, :]
    weak, strong, white = (np.full((4, 4), c) for c in (0.1, 0.3, -0.3))
    assert contrast.superposed([(strong, whole)], 4) == pytest.approx(strong), "one alone keeps its contrast"
    twice = contrast.superposed([(strong, whole), (strong, whole)], 4)
    assert twice == pytest.approx(0.3 * 2 ** (1 / 3)) and twice.max() < 1 - 0.7**2
    assert contrast.superposed([(strong, whole), (weak, whole)], 4).max() < 0.304, "the stronger one is seen"
    assert contrast.superposed([(strong, whole), (white, whole)], 4) == pytest.approx(0, abs=1e-9)
    assert not contrast.superposed([], 4).any()


def test_a_dislocation_is_a_sharp_line_whose_side_alternates():
    points = np.stack([np.linspace(-5, 133, 60), np.full(60, 64.0)], axis=1)
    loss, _ = contrast.line_contrast(contrast.Line(points, np.zeros(60), 0.4, 3.0), 128)
    profile = loss[:, 20:108].mean(axis=1)
    assert profile.max() == pytest.approx(0.4, rel=0.1) and (profile > profile.max() / 2).sum() in (3, 4)
    assert np.abs(profile[:56]).max() < 1e-3, "nothing beside it"
    phases = np.linspace(0, 4 * np.pi, 60)
    loss, _ = contrast.line_contrast(contrast.Line(points, phases, 0.4, 3.0), 128)
    places = loss.argmax(axis=0)
    assert places.max() - places.min() in (1, 2, 3) and loss.min() < -0.05
    assert loss.max(axis=0).min() < 0.6 * loss.max()
    assert not contrast.line_contrast(contrast.Line(points + 1000, phases, 0.4, 3.0), 128)[0].any()


def test_a_defect_cut_by_the_border_is_the_crop_of_the_whole():
    whole, cut = loop("rim", 30.3, 60.0, bean=0.5, side=0.3), loop("rim", 0.3, 30.0, bean=0.5, side=0.3)
    images = [contrast.superposed([contrast.defect_contrast(defect, 128)], 128) for defect in (whole, cut)]
    np.testing.assert_allclose(images[1][:60, :60], images[0][30:90, 30:90], atol=1e-12)


def test_a_micrograph_depends_on_seed_and_number_alone(tmp_path):
    """The hash guards the bytes across machines and versions; change it knowingly, with the generator."""
    p, seeds = Phantom(n_images=4, size_px=256), Seeds(7, "phantom")
    render_dataset(p, 7, tmp_path / "four")
    micrographs = load_dataset(tmp_path / "four").micrographs
    for number in (4, 2):  # not in the order in which the set was drawn
        alone = optics.image(draw_scene(p, seeds, number), p, seeds, number)
        assert np.array_equal(alone, micrographs[number - 1].read())
    render_dataset(p.model_copy(update={"n_images": 2}), 7, tmp_path / "two")
    assert load_dataset(tmp_path / "two").micrographs[1].annotations == micrographs[1].annotations
    pixels = micrographs[0].read()
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "d99c50ea966a868f"
    assert not np.array_equal(pixels, micrographs[1].read())


def test_labelled_defects_are_darker_than_what_surrounds_them(tmp_path):
    render_dataset(p := Phantom(n_images=6), 11, tmp_path)
    data = load_dataset(tmp_path)
    contrast = across_outlines(cut_patches(data, data.files, p.size_px, p.size_px, 0.25)[0])[0]["contrast"]
    assert len(contrast) > 150 and (contrast > 0).mean() >= 0.97


def test_a_preset_is_a_starting_point():
    changed = Phantom(preset="fecral", wedge=0.0, annotator={"miss": 0.5})
    assert changed.wedge == 0.0 and changed.size_px == PRESETS["fecral"]["size_px"]
    assert changed.annotator == Annotator(**{**PRESETS["fecral"]["annotator"], "miss": 0.5})
    assert Phantom(**changed.model_dump()) == changed
    assert Phantom() == Phantom(preset="plain")


@pytest.fixture(scope="module")
def crowd():
    return draw_scene(Phantom(size_px=2048, crowding=0.6, defects_per_megapixel=400), Seeds(4, "phantom"), 1)


def test_misses_follow_contrast_and_crowding(crowd):
    for label, exact in zip(annotate(crowd, Annotator(), np.random.default_rng(0)), truth(crowd), strict=True):
        assert (label.code, label.window, label.defect) == (exact.code, exact.window, exact.defect)
        assert (label.mask == exact.mask).all(), "the perfect annotator draws the truth"
    assert miss_probability(crowd.defects, Annotator(miss=0.2)) == pytest.approx(0.2)
    pair = [loop("rim", 20.0, 20.0, amplitude=0.1), loop("rim", 44.0, 20.0, amplitude=0.3)]
    assert miss_probability(pair, Annotator(miss_contrast=0.1)) == pytest.approx([0.5, 1 / 82])
    assert miss_probability(pair, Annotator(miss_crowded=0.3)) == pytest.approx([0.3, 0.3])
    assert miss_probability([pair[0], loop("rim", 47.0, 20.0)], Annotator(miss_crowded=0.3)) == pytest.approx(0.0)
    assert len(miss_probability([], Annotator(miss=0.2))) == 0
    found = len(annotate(crowd, Annotator(miss=0.25), np.random.default_rng(1))) / len(crowd.defects)
    assert found == pytest.approx(0.75, abs=0.04)


def test_confusions_and_outlines_come_at_their_rates(crowd):
    drawn = annotate(crowd, Annotator(confusion=0.3, outline_jitter=0.08), np.random.default_rng(3))
    changed = np.mean([label.code != crowd.defects[label.defect].code for label in drawn])
    assert changed == pytest.approx(0.3, abs=0.04)
    areas = np.array([[label.mask.sum(), crowd.mask(crowd.defects[label.defect])[0].sum()] for label in drawn])
    relative = (areas[:, 0] / areas[:, 1])[areas[:, 1] > 100]
    assert np.mean(relative) == pytest.approx(1.0, abs=0.03) and 0.03 < np.std(relative) < 0.2


def test_truth_is_kept_beside_the_labels(tmp_path):
    annotator = {"miss": 0.3, "confusion": 0.2, "outline_jitter": 0.05}
    render_dataset(Phantom(n_images=2, annotator=annotator), 9, tmp_path)
    labels, exact = load_dataset(tmp_path), load_dataset(tmp_path, TRUTH)
    assert labels.files == exact.files
    for labelled, true in zip(labels.micrographs, exact.micrographs, strict=True):
        ids = {a["id"] for a in labelled.annotations}
        assert {a["label_id"] for a in true.annotations} - {None} == ids
        assert 0 < len(ids) < len(true.annotations)
        assert all(a["defect"]["code"] == a["category_id"] for a in true.annotations)
    errors = label_errors(tmp_path).set_index("class")
    assert errors["defects"].sum() == sum(len(m.annotations) for m in exact.micrographs)
    assert errors["overlooked"].mean() == pytest.approx(0.3, abs=0.15)
    assert errors["confused"].mean() == pytest.approx(0.2, abs=0.15)
    assert 0.7 < errors["iou"].mean() < 0.99
    (tmp_path / TRUTH).unlink()
    assert label_errors(tmp_path) is None


def test_frames_of_a_grain_share_their_session_which_changes_contrast_and_nothing_else():
    seeds, steady = Seeds(5, "phantom"), Phantom(size_px=128, frames_per_grain=2, contrast=(0.2, 0.2), depth_fade=0.0)
    varied = steady.model_copy(update={"contrast_spread": 0.3, "dose_spread": 0.5, "defocus_nm": 2.0})
    first, second, third = (draw_scene(varied, seeds, number) for number in (1, 2, 3))
    assert (first.grain, first.azimuth_deg) == (second.grain, second.azimuth_deg) != (third.grain, third.azimuth_deg)
    sessions = [(s.dose_electrons, s.contrast, s.defocus_px) for s in (first, second, third)]
    assert sessions[0] == sessions[1] and not set(sessions[0]) & set(sessions[2])
    before = draw_scene(steady, seeds, 1)
    factors = {round(b.amplitude / a.amplitude, 9) for a, b in zip(before.defects, first.defects, strict=True)}
    assert factors == {round(first.contrast, 9)} != {1.0}
    assert [(d.x, d.y, d.major_px) for d in before.defects] == [(d.x, d.y, d.major_px) for d in first.defects]


def test_the_ellipse_of_a_mask_is_the_one_that_was_drawn_also_beyond_the_border():
    for x, y in ((30.0, 40.0), (4.0, 30.0), (58.0, 40.0)):
        ids = np.where(ellipse((64, 64), x, y, 26.0, 15.0, 35.0), 7, 0).astype(np.uint8)
        assert list(ellipses(ids)) == [7]
        assert ellipses(ids)[7] == pytest.approx((x, y, 26.0, 15.0, 35.0), abs=1.5)
    assert ellipses(np.zeros((64, 64), np.uint8)) == {}
    ids[:], ids[5, 5], ids[9, :] = 0, 1, 2  # a pixel, and a line from border to border
    assert ellipses(ids)[1] == pytest.approx((5.5, 5.5, 1.15, 1.15, ellipses(ids)[1][4]), abs=0.01)
    assert ellipses(ids)[2][2] >= 64 and ellipses(ids)[2][4] % 180 == pytest.approx(0, abs=1e-6)


def masks(number: int) -> Patches:
    """Patches with a loop in the middle of all but the first."""
    instances = np.zeros((number, 64, 64), np.uint8)
    instances[1:] = ellipse((64, 64), 32.0, 30.0, 28.0, 20.0, 30.0)
    labels, scales = {(k, 1): LOOP_111 for k in range(1, number)}, [0.88, *[0.5] * (number - 1)]
    return patches_of(instances, labels, pixel_size_nm=scales)


def test_painted_defects_lie_in_their_masks():
    p = Phantom(size_px=128, contrast=(0.4, 0.4), dislocations_per_megapixel=0.0, large_loops_per_megapixel=0.0)
    drawn = masks(6)
    images = paint_masks(drawn, p, Seeds(1, "here"))
    assert images.shape == (6, 64, 64) and images.dtype == np.uint8
    inside = drawn.instances[1:] > 0
    assert images[1:][inside].mean() < 0.9 * images[1:][~inside].mean()
    assert np.array_equal(images, paint_masks(drawn, p, Seeds(1, "here")))
    assert not np.array_equal(images, paint_masks(drawn, p, Seeds(1, "there")))
    less = replace(drawn, instances=drawn.instances * 0, table=drawn.table[:0])
    empty = paint_masks(less, p, Seeds(1, "here"))
    assert np.array_equal(empty[0], images[0]), "a patch without defects is the foil"


def test_only_masks_of_the_phantom_s_classes_and_size_are_painted():
    other, small = replace(masks(1), classes=("hcloop",)), Phantom.model_construct(size_px=32)
    for patches, phantom in ((other, Phantom()), (masks(1), small)):
        with pytest.raises(CompanionError, match=r"64 px: the phantom has"):
            paint_masks(patches, phantom, Seeds(1))
