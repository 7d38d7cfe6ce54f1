"""The repairs of the paper's sampler, the companion's and the learned sampler, and their judgement."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches

from companion.micrographs.patches import Patches, instance_table
from companion.errors import CompanionError
from companion.geometry import ellipse_radius
from companion.masks import placing, spatial
from companion.masks.judge import REAL, contenders, describe, distances, judge, two_sample_auc
from companion.masks.outlines import draw_ellipses, draw_instances
from companion.masks.simulate import REPAIRS, simulate, variants
from companion.masks.statistics import CONTOUR_PX, counts, measure
from companion.config.profile import Masks, validate


def crystalline(n=160, size=96, seed=0, images=8) -> Patches:
    """Patches with a crystal azimuth and a pixel size per image: bars (class 1) and dots (class 2), some cut."""
    rng = np.random.default_rng(seed)
    azimuth, scale = rng.uniform(0, 90, images), np.where(np.arange(images) % 2, 0.5, 1.0)
    maps, labels = np.zeros((n, size, size), np.uint8), {}
    for patch in range(n):
        image = patch % images
        for instance in range(1, rng.poisson(1.0 + image / 2) + 1):
            code = 1 + int(rng.random() < 0.4)
            angle = azimuth[image] + 90 * rng.integers(2) if code == 1 else rng.uniform(0, 180)
            major = (16, 7)[code - 1] * rng.uniform(0.8, 1.2) / scale[image]
            x, y = rng.uniform(-10, size + 10, 2)
            radius, window = ellipse_radius((size, size), x, y, major, major * (0.3, 0.9)[code - 1], angle % 180)
            if (radius <= 1).sum() > 0.25 * np.pi / 4 * major**2 * (0.3, 0.9)[code - 1]:
                maps[patch][window][radius <= 1] = instance
                labels[patch, instance] = code
    index = pd.DataFrame({"patch": range(n), "image": [f"{p % images}.png" for p in range(n)], "x0": 0, "y0": 0,
                          "symmetry": 0, "pixel_size_nm": scale[np.arange(n) % images]})  # fmt: skip
    return Patches(maps, maps, index, instance_table(maps, labels), ("bar", "dot"), (0, 1, 2, 3))


REAL_PATCHES = crystalline()
MEASURED, PER_PATCH = measure(REAL_PATCHES), counts(REAL_PATCHES)


def draw(seed=0, rare=False, n=400, **settings):
    masks = Masks(n_patches=n, **settings)
    return simulate(MEASURED, PER_PATCH, REAL_PATCHES, masks, np.random.default_rng(seed), "here", rare=rare)


def repaired(name):
    return draw(repairs=[name])


def test_empty_patches_come_back():
    share = (PER_PATCH.groupby("patch")["count"].sum() == 0).mean()
    assert share > 0.05
    assert 1 - draw().drawn["patch"].nunique() / 400 == 0
    assert 1 - repaired("empty-patches").drawn["patch"].nunique() / 400 == pytest.approx(share, abs=0.06)


def test_composition_takes_whole_patches():
    real = {tuple(row) for row in PER_PATCH.pivot(index="patch", columns="class", values="count").to_numpy().tolist()}

    def compositions(simulation):
        found = pd.crosstab(simulation.drawn["patch"], simulation.drawn["class"])
        return {tuple(row) for row in found.to_numpy().tolist()}

    assert compositions(repaired("composition")) <= real
    assert not compositions(draw()) <= real


def test_magnification_keeps_sizes_with_their_pixel_size():
    def spread(simulation):
        bars = simulation.drawn[simulation.drawn["class"] == 1]
        scale = simulation.patches.index["pixel_size_nm"].to_numpy()[bars["patch"]]
        return bars["major_px"].groupby(scale).median()

    assert spread(draw()).max() / spread(draw()).min() < 1.2
    assert spread(repaired("magnification")).max() / spread(repaired("magnification")).min() > 1.6


def test_azimuth_makes_bars_of_a_mask_parallel_or_crossed():
    assert spatial.coherence(MEASURED, 4) > 0.9
    assert abs(spatial.coherence(measure(draw().patches), 4)) < 0.4
    assert spatial.coherence(measure(draw(sampler="companion").patches), 4) > 0.8


def test_overlap_is_tested_on_the_ellipses():
    drawn = repaired("overlap").drawn
    i, j = spatial.pairs_within(drawn["patch"].to_numpy())
    shape = spatial.shape_matrices(*(drawn[c].to_numpy() for c in ("major_px", "minor_px", "angle_deg")))
    offset = drawn[["x", "y"]].to_numpy()[i] - drawn[["x", "y"]].to_numpy()[j]
    apart = spatial.contact(offset, shape[i], shape[j])
    assert (apart[~(drawn["forced"].to_numpy()[i] | drawn["forced"].to_numpy()[j])] > 1).all()
    boxes = draw().drawn
    i, j = spatial.pairs_within(boxes["patch"].to_numpy())
    shape = spatial.shape_matrices(*(boxes[c].to_numpy() for c in ("major_px", "minor_px", "angle_deg")))
    offset = boxes[["x", "y"]].to_numpy()[i] - boxes[["x", "y"]].to_numpy()[j]
    assert (spatial.contact(offset, shape[i], shape[j]) < 1).any()  # boxes let turned ellipses overlap


def test_borders_cut_as_many_defects_as_in_real_patches():
    real = MEASURED["touches_border"].mean()
    paper, ours = (measure(s.patches)["touches_border"].mean() for s in (draw(), repaired("borders")))
    assert abs(ours - real) < 0.05 and abs(ours - real) < abs(paper - real)
    drawn = repaired("borders").drawn
    assert ((drawn["x"] < 0) | (drawn["x"] > 96)).any()


def test_positions_follow_the_real_interaction():
    pairs = placing.real_interaction(MEASURED, 96, np.random.default_rng(0))
    assert pairs["g"].iloc[-1] == pytest.approx(1, abs=0.25)
    shapes = pd.DataFrame({"patch": np.repeat(np.arange(300), 2), "instance": np.tile([1, 2], 300), "major_px": 10.0,
                           "minor_px": 10.0, "angle_deg": 0.0})  # fmt: skip
    apart = pairs.assign(g=np.where(pairs["high"] <= 3, 1e-9, 1.0))
    centres, forced = placing.place_by_interaction(
        shapes, placing.interaction_of(shapes, apart), placing.Window(96), 16, 80, np.random.default_rng(0)
    )
    assert not forced.any()
    distance = np.linalg.norm(centres[::2] - centres[1::2], axis=1)
    assert distance.min() >= 30  # contact 3 of circles of radius 5
    free, _ = placing.place_by_interaction(
        shapes, placing.interaction_of(shapes, pairs.assign(g=1.0)), placing.Window(96), 16, 80,
        np.random.default_rng(0),
    )  # fmt: skip
    assert np.linalg.norm(free[::2] - free[1::2], axis=1).min() < 15


def test_a_full_window_is_told():
    """Discs of 60 px do not find room beside each other in 64 px, and overlaps are forbidden."""
    shapes = pd.DataFrame({"patch": 0, "instance": [1, 2], "major_px": 60.0, "minor_px": 60.0, "angle_deg": 0.0})
    measured = placing.real_interaction(MEASURED, 96, np.random.default_rng(0))
    hard = placing.interaction_of(shapes, measured.assign(g=np.where(measured["high"] <= 2, placing.FORBIDDEN, 1.0)))
    _, forced = placing.place_by_interaction(shapes, hard, placing.Window(64), 16, 80, np.random.default_rng(0))
    assert forced.tolist() == [False, True]


def discs(kind, n=200, size=128, seed=0) -> Patches:
    """Six discs of 9 px a patch, none overlapping: ``clustered`` around two places, or ``inhibited`` within 35 px."""
    rng = np.random.default_rng(seed)
    maps, labels = np.zeros((n, size, size), np.uint8), {}
    for patch in range(n):
        centres = np.zeros((0, 2))
        middle = rng.uniform(20, size - 20, (2, 2))
        for _ in range(2000):
            place = rng.uniform(8, size - 8, 2)
            if kind == "clustered":
                place = middle[rng.integers(2)] + rng.normal(0, 12, 2)
            gap = {"clustered": 11, "inhibited": 35}[kind]
            if (np.linalg.norm(centres - place, axis=1) >= gap).all() and (
                np.abs(place - size / 2) < size / 2 - 7
            ).all():
                centres = np.vstack([centres, place])
            if len(centres) == 6:
                break
        for instance, (x, y) in enumerate(centres, start=1):
            radius, window = ellipse_radius((size, size), x, y, 9.0, 9.0, 0.0)
            maps[patch][window][radius <= 1] = instance
            labels[patch, instance] = 1
    index = pd.DataFrame({"patch": range(n), "image": [f"{p % 10}.png" for p in range(n)], "x0": 0, "y0": 0,
                          "symmetry": 0, "pixel_size_nm": 1.0})  # fmt: skip
    return Patches(maps, maps, index, instance_table(maps, labels), ("disc",))


@pytest.mark.parametrize("kind", ["clustered", "inhibited"])
def test_places_follow_clustered_and_inhibited_patterns_better_than_the_paper_s(kind):
    real = discs(kind)
    statistics, per_patch, truth = measure(real), counts(real), describe(discs(kind, seed=1), 4)
    found = {}
    for sampler in ("authors", "companion"):
        masks = Masks(sampler=sampler, n_patches=600)
        simulation = simulate(statistics, per_patch, real, masks, np.random.default_rng(0), "here")
        found[sampler] = distances(truth, describe(simulation.patches, 4))
        if sampler == "companion":  # no real disc overlaps another one
            drawn = simulation.drawn
            i, j = spatial.pairs_within(drawn["patch"].to_numpy())
            shape = spatial.shape_matrices(*(drawn[c].to_numpy() for c in ("major_px", "minor_px", "angle_deg")))
            offset = drawn[["x", "y"]].to_numpy()[i] - drawn[["x", "y"]].to_numpy()[j]
            apart = spatial.contact(offset, shape[i], shape[j])
            assert simulation.forced <= 0.01 * len(drawn)
            assert (apart >= 1 - 1e-6).sum() >= len(apart) - 6 * simulation.forced
    assert found["companion"]["g_rmse"] < 0.7 * found["authors"]["g_rmse"]
    assert found["companion"]["wasserstein_neighbour"] < 0.7 * found["authors"]["wasserstein_neighbour"]


def test_few_pairs_do_not_make_an_interaction():
    """Independent places: what g says beyond contact is Poisson noise, and is taken for that."""
    rng = np.random.default_rng(5)
    n = 60
    places = rng.uniform(10, 246, (3 * n, 2))
    independent = pd.DataFrame({
        "patch": np.repeat(np.arange(n), 3), "x": places[:, 0], "y": places[:, 1], "major_px": 14.0, "minor_px": 14.0,
        "angle_deg": 0.0, "touches_border": False,
    })  # fmt: skip
    found = placing.real_interaction(independent, 256, rng)
    beyond = found[found["low"] >= 1]
    raw = beyond["pairs"] / beyond["expected"]
    assert np.abs(raw - 1).max() > 1 and np.abs(beyond["g"] - 1).max() < 0.2


def test_merging_repair_keeps_every_instance_apart():
    crowd = draw(repairs=["merging"]).patches.table, draw().patches.table
    assert len(crowd[0]) > len(crowd[1])


def test_window_sees_the_visible_share():
    shapes = pd.DataFrame({"major_px": [20.0] * 4, "minor_px": [20.0] * 4, "angle_deg": [0.0] * 4})
    window = placing.Window(100, 0.5)
    places = np.array([[50.0, 50.0], [1.0, 50.0], [-1.0, 50.0], [1.0, 1.0]])  # whole, > half, < half, a quarter
    assert window.sees(shapes, places).tolist() == [True, True, False, False]
    centres = window.propose(pd.concat([shapes] * 200, ignore_index=True), np.random.default_rng(0))
    assert window.sees(pd.concat([shapes] * 200, ignore_index=True), centres).all() and (centres < 0).any()


@pytest.mark.parametrize("sampler", ["authors", "companion"])
def test_rare_class_reaches_the_same_share_in_every_sampler(sampler):
    plain = PER_PATCH.groupby("class")["count"].sum()
    p = plain.min() / plain.sum()
    found = draw(sampler=sampler, rare=True, n=1500).drawn["class"].value_counts(normalize=True)[plain.idxmin()]
    assert found == pytest.approx(2 * p / (1 + p), abs=0.03)


def test_repairs_belong_to_the_paper_s_sampler():
    with pytest.raises(CompanionError, match=r"are for sampler 'authors'; 'companion' takes none"):
        validate(Masks, {"sampler": "companion", "repairs": ["azimuth"]}, "here")
    with pytest.raises(CompanionError, match=r"repairs\.0"):
        validate(Masks, {"repairs": ["azimut"]}, "here")


def test_one_class_without_directions_and_a_single_patch_work():
    patches = ellipse_patches(12, classes=1)
    for one in (patches, replace(patches, instances=patches.instances[:4], index=patches.index[:4],
                                 table=patches.table[patches.table["patch"] < 4])):  # fmt: skip
        simulation = simulate(measure(one), counts(one), one, Masks(sampler="companion", n_patches=20),
                              np.random.default_rng(0), "here")  # fmt: skip
        assert len(simulation.patches) == 20 and set(simulation.drawn["class"]) == {1}


def test_real_outlines_are_moved_and_turned():
    maps = np.zeros((1, 64, 64), np.uint8)
    maps[0, 20:40, 28:33] = 1
    maps[0, 35:40, 28:43] = 1  # an L, whose area no ellipse has
    labels = pd.DataFrame({"patch": [0], "instance": [1], "class": [1]})
    index = pd.DataFrame({"patch": [0], "image": "a", "x0": 0, "y0": 0, "symmetry": 0, "pixel_size_nm": 1.0})
    real = Patches(None, maps, index, instance_table(maps, labels), ("a",))
    row = measure(real).iloc[0]
    same = pd.DataFrame({"patch": [0], "instance": [1], "x": row["x"], "y": row["y"], "source": 0,
                         "major_px": row["major_px"] + CONTOUR_PX, "minor_px": row["minor_px"] + CONTOUR_PX,
                         "angle_deg": row["angle_deg"]})  # fmt: skip
    paint = draw_instances(real, measure(real))
    assert (paint(same, 1, 64)[0] == maps).mean() > 0.999
    turned = paint(same.assign(angle_deg=(row["angle_deg"] + 90) % 180), 1, 64)[0]
    assert (turned > 0).sum() == pytest.approx((maps > 0).sum(), abs=8) and (turned != maps).sum() > 100
    corner = paint(same.assign(x=0.0, y=0.0), 1, 64)[0]
    assert 0 < (corner > 0).sum() < (maps > 0).sum()
    assert (paint(same.assign(source=-1), 1, 64)[0] == draw_ellipses(same, 1, 64)[0]).all()


@pytest.mark.parametrize("settings", [{"repairs": ["merging"]}, {"sampler": "companion", "outlines": "instance"}])
def test_tables_are_those_of_the_maps(settings):
    simulation = draw(**settings)
    expected = instance_table(simulation.patches.instances, simulation.drawn)
    found = simulation.patches.table.sort_values(["patch", "instance"], ignore_index=True)
    pd.testing.assert_frame_equal(found, expected)


def test_judge_tells_the_paper_s_sampler_from_real_and_ours_less():
    truth = describe(REAL_PATCHES, 4)
    masks = Masks(n_patches=300)
    samplers = {name: variants(masks)[name] for name in ("authors", "+ azimuth", "companion")}
    described = {}
    for name, m in samplers.items():
        found = simulate(MEASURED, PER_PATCH, REAL_PATCHES, m, np.random.default_rng(0), name)
        described[name] = describe(found.patches, 4, found.origin)
    judged = judge(truth, described, 4, np.random.default_rng(0)).set_index("sampler")
    assert judged.index.tolist() == [REAL, *samplers]
    assert judged["auc"]["authors"] > 0.75 and judged["auc"]["companion"] < 0.65
    assert ((judged["auc_low"] <= judged["auc"]) & (judged["auc"] <= judged["auc_high"])).all()
    assert judged["wasserstein_count"]["companion"] < judged["wasserstein_count"]["authors"]
    paper, repair, closest = contenders(judged.reset_index())
    assert (paper["sampler"], repair["sampler"], closest["sampler"]) == ("authors", "+ azimuth", "companion")


def test_classifier_cannot_tell_copies_and_tells_shifted_masks():
    one = describe(crystalline(150), 4)
    rng = np.random.default_rng(0)
    assert two_sample_auc(one, one, rng)[0] == 0.5  # a copy is held out with its original
    moved = replace(one, features=one.features.assign(nearest=one.features["nearest"] + 0.5))
    assert two_sample_auc(one, moved, rng)[0] > 0.95


def test_too_few_micrographs_give_no_verdict():
    few = describe(crystalline(40, images=1), 4)
    assert np.isnan(two_sample_auc(few, few, np.random.default_rng(0))[0])
    assert judge(few, {}, 4, np.random.default_rng(0)).empty


def test_variants_are_the_paper_s_each_repair_and_those_compared():
    names = list(variants(Masks(compare=["companion", "learned"], repairs=["azimuth"])))
    expected = ["authors", *(f"+ {r}" for r in REPAIRS), "companion", "learned", "companion, real outlines"]
    assert names == expected
    assert list(variants(Masks(compare=[]))) == expected[: len(REPAIRS) + 1]


def test_learned_coding_goes_there_and_back():
    from companion.masks.learned import Coding

    rows = pd.DataFrame({"angle_deg": [0.0, 179.0], "major_px": [8.0, 40.0], "minor_px": [4.0, 39.0], "x": [-5.0, 60.0],
                         "y": [30.0, 99.0]})  # fmt: skip
    coding = Coding(96, np.log(6), np.log(60))
    back = coding.decode(coding.encode(rows))
    pd.testing.assert_frame_equal(back[list(rows)], rows, rtol=1e-4, atol=1e-3)


def test_learned_sampler_draws_valid_masks_and_is_repeatable():
    first, again = (draw(sampler="learned", learned_steps=6, n=30) for _ in range(2))
    pd.testing.assert_frame_equal(first.drawn, again.drawn)
    assert (first.patches.instances == again.patches.instances).all()
    assert first.drawn["class"].isin([1, 2]).all() and first.drawn["angle_deg"].between(0, 180).all()
    assert (first.drawn["major_px"] >= first.drawn["minor_px"] * (1 - 1e-9)).all()


@pytest.mark.slow
def test_learned_sampler_learns_numbers_and_directions():
    learned = draw(sampler="learned", learned_steps=250)
    real = PER_PATCH.groupby("patch")["count"].sum().mean()
    assert len(learned.drawn) / 400 == pytest.approx(real, rel=0.25)
    assert spatial.coherence(measure(learned.patches), 4) > 0.4
