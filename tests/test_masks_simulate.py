"""The paper's mask sampler."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from scipy.stats import ks_2samp

from companion.micrographs.patches import load_patches
from companion.errors import CompanionError
from companion.masks.outlines import draw_ellipses
from companion.masks.placing import Window, boxes_near, place_by_rejection
from companion.masks.simulate import class_shares, simulate
from companion.masks.statistics import CONTOUR_PX, counts, measure
from companion.config.profile import Masks


def draw(patches, seed=0, rare=False, **settings):
    rng = np.random.default_rng(seed)
    return simulate(measure(patches), counts(patches), patches, Masks(**settings), rng, "here", rare=rare)


def ellipses(*rows):
    names = ["patch", "instance", "x", "y", "major_px", "minor_px", "angle_deg"]
    return pd.DataFrame(rows, columns=names)


def test_simulated_defects_have_the_statistics_they_were_drawn_from():
    patches = ellipse_patches(120)
    real, number = measure(patches), counts(patches)
    drawn = draw(patches, n_patches=1500).drawn
    shares = drawn["class"].value_counts(normalize=True).sort_index()
    assert shares.to_numpy() == pytest.approx(class_shares(number, 3), abs=0.03)
    for code in (1, 2, 3):
        ours, theirs = drawn[drawn["class"] == code], real[real["class"] == code]
        pairs = set(map(tuple, (theirs[["major_px", "minor_px"]] + CONTOUR_PX).round(6).to_numpy().tolist()))
        assert (
            set(map(tuple, ours[["major_px", "minor_px"]].round(6).to_numpy().tolist())) <= pairs
        )  # axes stay together
        assert ks_2samp(ours["major_px"], theirs["major_px"] + CONTOUR_PX).statistic < 0.1
    assert ks_2samp(drawn["x"], np.random.default_rng(0).uniform(0, 64, 5000)).pvalue > 1e-3
    non_empty = number.groupby("patch")["count"].sum().loc[lambda n: n > 0]
    assert ks_2samp(drawn.groupby("patch").size(), non_empty).statistic < 0.1


def test_no_simulated_mask_is_empty_although_real_ones_are():
    patches = ellipse_patches(40)
    assert (counts(patches).groupby("patch")["count"].sum() == 0).any()
    assert draw(patches, n_patches=300).drawn["patch"].nunique() == 300


def test_angles_bring_the_symmetries_that_training_applies():
    patches = ellipse_patches(30)
    real = measure(patches)["angle_deg"].to_numpy()
    turned = draw(patches, n_patches=200).drawn["angle_deg"].to_numpy()  # symmetries 0-3
    still = draw(replace(patches, symmetries=(0,)), n_patches=200).drawn["angle_deg"].to_numpy()
    assert np.isin(still.round(6), real.round(6)).all()
    assert (
        np.isin((turned % 90).round(6), (real % 90).round(6)).all()
        and not np.isin(turned.round(6), real.round(6)).all()
    )


def test_boxes_keep_their_distance_unless_forced():
    drawn = draw(ellipse_patches(60), n_patches=200, overlap_buffer_px=3).drawn
    assert not drawn["forced"].any()
    for _, rows in drawn.groupby("patch"):
        centre, half = rows[["x", "y"]].to_numpy(), rows[["major_px", "minor_px"]].to_numpy() / 2
        for i in range(len(rows)):
            for j in range(i):
                gap = np.abs(centre[i] - centre[j]) - half[i] - half[j]
                assert gap.max() >= 3 - 1e-9


def test_hopeless_crowding_is_drawn_anyway_and_reported():
    crowd = ellipses(*[(0, k, 0.0, 0.0, 60.0, 60.0, 0.0) for k in (1, 2, 3)], (1, 1, 0.0, 0.0, 5.0, 5.0, 0.0))
    crowd = crowd.sort_values("patch", ignore_index=True)
    near, rng = boxes_near(crowd, 2), np.random.default_rng(0)
    centres, forced = place_by_rejection(crowd, near, Window(64), 80, rng)
    assert forced.tolist() == [False, True, True, False]
    assert ((centres >= 0) & (centres < 64)).all()


def test_rare_trial_doubles_the_weight_of_the_rarest_class():
    number = pd.DataFrame({"patch": 0, "class": [1, 2, 3], "count": [1, 3, 6]})
    assert class_shares(number, 3) == pytest.approx([0.1, 0.3, 0.6])
    assert class_shares(number, 3, 2.0) == pytest.approx([2 / 11, 3 / 11, 6 / 11])
    absent = pd.DataFrame({"patch": 0, "class": [1, 2, 3], "count": [0, 3, 6]})
    assert class_shares(absent, 3, 2.0) == pytest.approx([0, 0.5, 0.5])  # a class without instances is not the rarest


def test_rare_trial_is_refused_for_one_class_and_plain_works():
    patches = ellipse_patches(20, classes=1)
    with pytest.raises(CompanionError, match=r"needs two classes or more.*Use masks 'plain'"):
        draw(patches, rare=True)
    assert set(draw(patches, n_patches=20).patches.table["class"]) == {1}


def test_nothing_to_draw_from_is_refused():
    patches = ellipse_patches(6)
    empty = replace(patches, instances=np.zeros_like(patches.instances), table=patches.table.iloc[:0])
    with pytest.raises(CompanionError, match="no instance in the training patches"):
        draw(empty)


def test_masks_are_whole_patches_that_round_trip(tmp_path):
    simulated = draw(ellipse_patches(20), n_patches=30).patches
    assert simulated.images is None and simulated.instances.shape == (30, 64, 64)
    assert (simulated.index["image"] == "here").all() and (simulated.index["pixel_size_nm"] == 0.88).all()
    simulated.save(tmp_path)
    read = load_patches(tmp_path)
    pd.testing.assert_frame_equal(read.table, simulated.table)
    assert (read.label_maps() == simulated.label_maps()).all()


def test_equal_seeds_give_equal_masks_and_others_do_not():
    patches = ellipse_patches(20)
    first, second, other = draw(patches, 1), draw(patches, 1), draw(patches, 2)
    assert (first.patches.instances == second.patches.instances).all()
    assert (first.patches.instances != other.patches.instances).any()


def test_later_ellipses_lie_on_top_and_the_smallest_keeps_a_pixel():
    drawn = ellipses((0, 1, 16, 16, 20, 20, 0), (0, 2, 16, 16, 8, 8, 0), (0, 3, 0.1, 31.9, 0.1, 0.1, 0))
    instances, _ = draw_ellipses(drawn, 1, 32)
    assert instances.dtype == np.uint8
    assert instances[0, 16, 16] == 2 and instances[0, 16, 8] == 1 and instances[0, 31, 0] == 3
    assert (instances == 2).sum() == pytest.approx(np.pi * 16, rel=0.1)
