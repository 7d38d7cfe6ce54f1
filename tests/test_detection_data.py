"""Recipes of arms: equal batches, draws by step only, truth that moves with its patch."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ellipse_patches
from test_detection import DEVICE

from companion.config.arms import ARMS
from companion.config.sections import Detection
from companion.detection.data import Example, copy_paste, recipe_of, settings_of
from companion.errors import CompanionError
from companion.geometry import box_of
from companion.seeds import Seeds

ALWAYS = SimpleNamespace(random=np.zeros)  # a generator whose coin always falls on paste


def make(arm="EXP", n=12, batch_size=4, share=0.5, seed=1, **given):
    settings = Detection(batch_size=batch_size, generated_share=share)
    given = {"labelled": ellipse_patches(n), "other": ellipse_patches(7, seed=5), **given}
    return recipe_of(arm, given["labelled"], given["other"], settings, Seeds(3, "detector", seed))


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_has_the_batch_size_and_the_parts_that_its_row_says(arm):
    made = make(arm, batch_size=8, share=0.25)
    expected = {"labelled": 6, ARMS[arm].other: 2} if ARMS[arm].labelled else {ARMS[arm].other: 8}
    assert made.counts == ({"labelled": 8} if ARMS[arm].other is None else expected)
    batch = made.batch(0, DEVICE)
    assert batch.images.shape == (8, 64, 64) and batch.images.numpy().dtype == np.uint8
    assert make("EXP+GEN", share=0.0).counts == {"labelled": 4}


def test_a_step_is_drawn_without_the_steps_before_and_alike_in_every_arm():
    straight = [make("EXP+GEN").draw(step) for step in range(5)][4]
    alone = make("EXP+GEN").draw(4)
    assert straight.keys() == alone.keys()
    for one, other in zip(straight.values(), alone.values(), strict=True):
        assert (one.patches == other.patches).all() and (one.symmetries == other.symmetries).all()
    assert (make("EXP+FRESH").draw(4)["labelled"].patches == alone["labelled"].patches).all()
    assert (make(seed=1).draw(0)["labelled"].patches != make(seed=2).draw(0)["labelled"].patches).any()


def test_an_arm_of_equal_passes_sees_as_many_labelled_patches_as_exp():
    settings = Detection(steps=100, batch_size=4, generated_share=0.5)
    seen = {arm: settings_of(arm, settings).steps * make(arm).counts["labelled"] for arm in ("EXP", "EXP+GEN-LONG")}
    assert seen == dict.fromkeys(seen, 400) and settings_of("EXP+GEN", settings).steps == 100
    with pytest.raises(CompanionError, match="leaves none"):
        settings_of("EXP+GEN-LONG", settings.model_copy(update={"generated_share": 1.0}))


def test_all_patches_are_seen_equally_often_in_a_new_order_each_time():
    drawn = [int(p) for step in range(5) for p in make(n=10).draw(step)["labelled"].patches]
    assert Counter(drawn) == dict.fromkeys(range(10), 2) and drawn[:10] != drawn[10:]


@pytest.mark.parametrize("arm", ["EXP", "EXP+PASTE"])
def test_boxes_are_those_of_their_masks_in_every_symmetry(arm):
    labelled = replace(ellipse_patches(12), symmetries=tuple(range(8)))
    labelled = replace(labelled, table=labelled.table.sample(frac=1, random_state=0))  # in any order
    made, checked = make(arm, labelled=labelled, batch_size=8, share=1.0), 0
    for step in range(6):
        batch = made.batch(step, DEVICE)
        for place, column in zip(*(batch.labels > 0).nonzero(as_tuple=True), strict=True):
            mask = (batch.instances[place] == batch.ids[place, column]).numpy()
            assert box_of(mask) == tuple(batch.boxes[place, column].tolist())
            assert batch.images[place].numpy()[mask].mean() < 140  # defects are dark: 110 on 170
            checked += 1
    everything = 4 * len(ellipse_patches(12).table)  # in 6 batches of 8
    assert checked == everything if arm == "EXP" else checked > 1.2 * everything


def test_pasting_by_hand():
    instances = np.zeros((8, 8), dtype=np.uint8)
    instances[2, 2], instances[5:7, 5:7] = 1, 2
    truth = np.array([[2, 2, 3, 3, 1, 1], [5, 5, 7, 7, 3, 2]], dtype=float)
    target = Example(np.full((8, 8), 100, dtype=np.uint8), instances, truth)
    source = Example(np.full((8, 8), 150, np.uint8), np.zeros((8, 8), np.uint8), np.array([[2, 2, 4, 6, 2, 7.0]]))
    source.instances[2:6, 2:4], source.image[2:6, 2:4] = 7, 90
    image, ids, rows = copy_paste(target, source, ALWAYS)
    # The one-pixel defect is hidden; the pasted one is 60 below its background, as it was at home.
    assert rows.tolist() == [[5, 5, 7, 7, 3, 2], [2, 2, 4, 6, 2, 9]]
    assert (image[2:6, 2:4] == 40).all() and (image[ids != 9] == 100).all()
    assert (target.image == 100).all() and target.instances[2, 2] == 1 and source.truth[0, 5] == 7
    empty = Example(source.image, np.zeros_like(instances), np.zeros((0, 6)))
    assert (copy_paste(target, empty, ALWAYS).image == target.image).all()
    assert len(copy_paste(empty, source, ALWAYS).truth) == 1


def test_the_identity_of_a_recipe_changes_with_all_that_it_draws_from():
    plain, patches = make().identity(), ellipse_patches(12)
    assert make().identity() == plain
    changed = [
        make(seed=2), make(n=11), make(batch_size=2), make("EXP+GEN"),
        make(labelled=replace(patches, table=patches.table.assign(**{"class": 1}))),
        make(labelled=replace(patches, symmetries=(0,))), make(labelled=replace(patches, images=patches.images + 1)),
    ]  # fmt: skip
    assert all(recipe.identity() != plain for recipe in changed)


@pytest.mark.parametrize(("arm", "given", "message"), [
    ("EXP+GAN", {}, r"no arm 'EXP[+]GAN': .*EXP[+]GEN"),
    ("EXP", {"labelled": replace(ellipse_patches(2), images=None)}, "needs labelled patches with images"),
    ("EXP+GEN", {"other": None}, "needs generated patches with images, and there are none"),
    ("EXP+FILTERED", {"other": ellipse_patches(0)}, "kept .*; lower faithfulness.least_confirmed"),
])  # fmt: skip
def test_missing_patches_are_named(arm, given, message):
    with pytest.raises(CompanionError, match=message):
        make(arm, **given)
