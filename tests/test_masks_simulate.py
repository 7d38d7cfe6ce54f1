"""The paper's mask sampler, its repairs, the learned sampler, and how they are compared."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse, ellipse_patches, patches_of
from scipy.stats import ks_2samp

from companion.config.sections import Masks
from companion.errors import CompanionError
from companion.masks import simulate, spatial
from companion.masks.compare import OTHER_HALF, compare, describe, distances, mask_auc
from companion.masks.simulate import class_shares, draw_instances, variants
from companion.masks.statistics import CONTOUR_PX, ELLIPSE_COLUMNS, counts, measure
from companion.micrographs.patches import Patches, instance_table


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
            mask = ellipse((size, size), x, y, major, major * (0.3, 0.9)[code - 1], angle % 180)
            if mask.sum() > 0.25 * np.pi / 4 * major**2 * (0.3, 0.9)[code - 1]:
                maps[patch][mask] = instance
                labels[patch, instance] = code
    of = np.arange(n) % images
    return patches_of(maps, labels, maps, ("bar", "dot"), image=[f"{k}.png" for k in of], pixel_size_nm=scale[of])


REAL_PATCHES = crystalline()
MEASURED, PER_PATCH = measure(REAL_PATCHES), counts(REAL_PATCHES)


def draw(patches=REAL_PATCHES, seed=0, n=400, rare_weight=1.0, **settings):
    rng, masks = np.random.default_rng(seed), Masks(n_patches=n, **settings)
    return simulate.simulate(measure(patches), counts(patches), patches, masks, rng, "here", rare_weight)


def test_simulated_defects_have_the_statistics_they_were_drawn_from():
    patches = ellipse_patches(120)
    real, number = measure(patches), counts(patches)
    drawn = draw(patches, n=1500).drawn
    shares = drawn["class"].value_counts(normalize=True).sort_index()
    assert shares.to_numpy() == pytest.approx(class_shares(number, 3), abs=0.03)
    for code in (1, 2, 3):
        ours, theirs = drawn[drawn["class"] == code], real[real["class"] == code]
        pairs = set(map(tuple, (theirs[["major_px", "minor_px"]] + CONTOUR_PX).round(6).to_numpy().tolist()))
        assert set(map(tuple, ours[["major_px", "minor_px"]].round(6).to_numpy().tolist())) <= pairs  # kept together
        assert ks_2samp(ours["major_px"], theirs["major_px"] + CONTOUR_PX).statistic < 0.1
    assert ks_2samp(drawn["x"], np.random.default_rng(0).uniform(0, 64, 5000)).pvalue > 1e-3
    non_empty = number.groupby("patch")["count"].sum().loc[lambda n: n > 0]
    assert drawn["patch"].nunique() == 1500 and len(non_empty) < 120  # no mask is empty although patches are
    assert ks_2samp(drawn.groupby("patch").size(), non_empty).statistic < 0.1


def test_angles_bring_the_symmetries_that_training_applies():
    patches = ellipse_patches(30)
    real = measure(patches)["angle_deg"].to_numpy()

    def strange(symmetries, period):  # largest distance to a real angle
        angles = draw(replace(patches, symmetries=symmetries), n=200).drawn["angle_deg"].to_numpy()
        return np.abs((angles % period)[:, None] - real % period).min(axis=1).max()

    assert strange((0,), 180) < 1e-6 and strange((0, 1, 2, 3), 90) < 1e-6
    assert strange((0, 1, 2, 3), 180) > 1e-3


def test_boxes_keep_their_distance_and_hopeless_crowding_is_drawn_anyway():
    drawn = draw(ellipse_patches(60), n=200, overlap_buffer_px=3).drawn
    assert not drawn["forced"].any() and drawn[["x", "y"]].min().min() >= 0 and drawn[["x", "y"]].max().max() < 64
    i, j = spatial.pairs_within(drawn["patch"].to_numpy())
    centre, half = drawn[["x", "y"]].to_numpy(), drawn[["major_px", "minor_px"]].to_numpy() / 2
    assert (np.abs(centre[i] - centre[j]) - half[i] - half[j]).max(axis=1).min() >= 3 - 1e-9
    crowd = draw(ellipse_patches(60), n=50, overlap_buffer_px=60, overlap_tries=3).drawn
    assert (crowd["forced"] == (crowd["instance"] > 1)).all()  # the first always finds room, nothing fits beside it


def test_rare_trial_doubles_the_weight_of_the_rarest_class():
    number = pd.DataFrame({"patch": 0, "class": [1, 2, 3], "count": [1, 3, 6]})
    assert class_shares(number, 3, 2.0) == pytest.approx([2 / 11, 3 / 11, 6 / 11])
    absent = number.assign(count=[0, 3, 6])
    assert class_shares(absent, 3, 2.0) == pytest.approx([0, 0.5, 0.5])  # a class without instances is not the rarest
    p = PER_PATCH.groupby("class")["count"].sum().pipe(lambda n: n / n.sum())
    for sampler in ("authors", "companion"):
        found = draw(sampler=sampler, rare_weight=2.0, n=1500).drawn["class"].value_counts(normalize=True)[p.idxmin()]
        assert found == pytest.approx(2 * p.min() / (1 + p.min()), abs=0.03)


def test_one_class_works_and_what_cannot_be_drawn_is_refused():
    one = ellipse_patches(20, classes=1)  # without directions; also of a single micrograph
    for few in (one, one.only(np.arange(4))):
        assert set(draw(few, sampler="companion", n=20).drawn["class"]) == {1}
    with pytest.raises(CompanionError, match=r"needs two classes or more.*use 'plain'"):
        draw(one, rare_weight=2.0)
    with pytest.raises(CompanionError, match="sampler 'learned' cannot weigh classes"):
        draw(rare_weight=2.0, sampler="learned")
    with pytest.raises(CompanionError, match="no instance in the training patches"):
        draw(replace(one, instances=np.zeros_like(one.instances), table=one.table.iloc[:0]))


def test_masks_are_whole_patches_and_equal_seeds_repeat():
    patches = ellipse_patches(20)
    first, second, other = (draw(patches, seed, n=30).patches for seed in (1, 1, 2))
    assert first.images is None and (first.index["pixel_size_nm"] == 0.88).all()
    assert (first.instances == second.instances).all() and (first.instances != other.instances).any()
    kept = draw(repairs=["merging"])
    assert len(kept.patches.table) > len(draw().patches.table)
    pd.testing.assert_frame_equal(kept.patches.table, instance_table(kept.patches.instances, kept.drawn))


def test_empty_patches_and_composition_come_from_real_patches():
    share = (PER_PATCH.groupby("patch")["count"].sum() == 0).mean()
    assert 1 - draw(repairs=["empty-patches"]).drawn["patch"].nunique() / 400 == pytest.approx(share, abs=0.06)
    real = {tuple(row) for row in PER_PATCH.pivot(index="patch", columns="class", values="count").to_numpy().tolist()}
    found = [draw(repairs=repairs).drawn for repairs in (["composition"], [])]
    repaired, paper = ({tuple(row) for row in pd.crosstab(d["patch"], d["class"]).to_numpy().tolist()} for d in found)
    assert repaired <= real and not paper <= real


def test_magnification_keeps_sizes_with_their_pixel_size():
    for found, low, high in ((draw(), 1, 1.2), (draw(repairs=["magnification"]), 1.6, 2.4)):
        bars = found.drawn[found.drawn["class"] == 1]
        scale = found.patches.index["pixel_size_nm"].to_numpy()[bars["patch"]]
        median = bars["major_px"].groupby(scale).median()
        assert low < median.max() / median.min() < high


def test_azimuth_makes_bars_of_a_mask_parallel_or_crossed():
    assert spatial.coherence(MEASURED, 4) > 0.9
    assert abs(spatial.coherence(measure(draw().patches), 4)) < 0.4
    assert spatial.coherence(measure(draw(sampler="companion").patches), 4) > 0.8


def test_overlap_is_tested_on_the_ellipses():
    def overlaps(simulation):
        """Do the masks depend on which ellipse is drawn first?"""
        drawn = simulation.drawn[~simulation.drawn["forced"]]
        return (draw_instances(drawn, 400, 96) != draw_instances(drawn.iloc[::-1], 400, 96)).any()

    assert overlaps(draw()) and not overlaps(draw(repairs=["overlap"]))  # boxes let turned ellipses overlap
    bars = pd.DataFrame({"major_px": [40.0, 40.0], "minor_px": 4.0, "angle_deg": 45.0})  # rise to the right; y is down
    for near, expected in ((simulate.ellipses_near, [False, True]), (simulate.boxes_near, [True, False])):
        offsets = np.array([[14.0, 3.0], [14.0, -14.0]])  # beside each other; one behind the other
        assert near(bars, 0.0)(np.array([0, 0]), np.array([1, 1]), offsets).tolist() == expected, near
    inside = pd.DataFrame({"major_px": [40.0, 4.0], "minor_px": [30.0, 4.0], "angle_deg": 0.0})
    assert simulate.ellipses_near(inside, 0.0)(np.array([0]), np.array([1]), np.array([[3.0, 2.0]])).all()


def test_borders_cut_as_many_defects_as_in_real_patches_and_keep_sizes():
    real = MEASURED["touches_border"].mean()
    paper, ours = (measure(s.patches) for s in (draw(n=1500), draw(n=1500, repairs=["borders"])))
    cut = [table["touches_border"].mean() for table in (paper, ours)]
    assert abs(cut[1] - real) < 0.05 and abs(cut[1] - real) < abs(cut[0] - real)
    # What is uncut in simulated patches is as large as what is uncut in real ones.
    whole = [table.loc[~table["touches_border"], "major_px"].mean() for table in (MEASURED, ours)]
    assert whole[1] == pytest.approx(whole[0], rel=0.05)


def test_labelled_outlines_are_moved_and_turned():
    maps = np.zeros((1, 64, 64), np.uint8)
    maps[0, 20:40, 28:33] = maps[0, 35:40, 28:43] = 1  # an L, whose area no ellipse has
    real = replace(REAL_PATCHES.only(np.arange(1)), instances=maps, table=instance_table(maps, {(0, 1): 1}))
    table = measure(real)
    same = table[ELLIPSE_COLUMNS].assign(patch=0, instance=1, source=0)
    same[["major_px", "minor_px"]] += CONTOUR_PX
    assert (draw_instances(same, 1, 64, real, table) == maps).mean() > 0.999
    turned = draw_instances(same.assign(angle_deg=(same["angle_deg"] + 90) % 180), 1, 64, real, table)
    assert (turned > 0).sum() == pytest.approx((maps > 0).sum(), abs=8) and (turned != maps).sum() > 100
    assert 0 < (draw_instances(same.assign(x=0.0, y=0.0), 1, 64, real, table) > 0).sum() < (maps > 0).sum()
    none = same.assign(source=-1)
    assert (draw_instances(none, 1, 64, real, table) == draw_instances(none, 1, 64)).all()


def test_learned_sampler_draws_valid_masks_learns_their_number_and_is_repeatable():
    first, again = (draw(sampler="learned", learned_steps=30, n=100) for _ in range(2))
    pd.testing.assert_frame_equal(first.drawn, again.drawn)
    assert first.drawn["class"].isin([1, 2]).all() and first.drawn["angle_deg"].between(0, 180).all()
    assert first.drawn["major_px"].between(MEASURED["major_px"].min(), MEASURED["major_px"].max() * 1.2).all()
    assert first.drawn.groupby("patch")["instance"].max().max() <= 2 * PER_PATCH.groupby("patch")["count"].sum().max()
    real = PER_PATCH.groupby("patch")["count"].sum().mean()
    assert len(first.drawn) / 100 == pytest.approx(real, rel=0.35)


def test_judges_tell_the_paper_s_sampler_from_real_masks_and_ours_less(two_deals):
    truth, described = describe(REAL_PATCHES, 4), {}
    samplers = {name: variants(Masks(n_patches=300))[name] for name in ("authors", "+ azimuth", "companion")}
    for name, settings in samplers.items():
        found = simulate.simulate(MEASURED, PER_PATCH, REAL_PATCHES, settings, np.random.default_rng(0), name)
        described[name] = describe(found.patches, 4, found.origin)
    compared = compare(truth, described, 4, np.random.default_rng(0)).set_index("sampler")
    assert compared.index.tolist() == [OTHER_HALF, *samplers]
    assert list(variants(Masks(compare=[])))[1:] == [f"+ {repair}" for repair in simulate.REPAIRS]
    assert compared["auc"]["authors"] > 0.75 and compared["auc"]["companion"] < 0.65
    assert compared["count"]["companion"] < compared["count"]["authors"] and compared["empty"]["authors"] == 0


def test_classifier_cannot_tell_copies_and_tells_shifted_masks(two_deals):
    one = describe(crystalline(150), 4)
    assert mask_auc(one, one, np.random.default_rng(0)) == 0.5  # a copy is held out with its original
    moved = replace(one, features=one.features.assign(nearest=one.features["nearest"] + 0.5))
    assert mask_auc(one, moved, np.random.default_rng(0)) > 0.95
    assert not any(distances(one, one).values())
    few = describe(crystalline(40, images=1), 4)  # of one micrograph: no verdict
    assert np.isnan(mask_auc(few, few, np.random.default_rng(0)))
    assert compare(few, {}, 4, np.random.default_rng(0)).empty
