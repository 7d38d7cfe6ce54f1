"""Arms as recipes: equal batches, draws by step only, truth that moves with its patch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ellipse_patches

from companion import seeds
from companion.detection.paste import copy_paste
from companion.detection.pools import Pool
from companion.detection.recipes import recipe
from companion.errors import CompanionError
from companion.geometry import box_of, symmetry, symmetry_boxes


def make(arm="EXP", n=12, batch_size=4, share=0.5, seed=1, **pools):
    pools = {"real": ellipse_patches(n), "generated": ellipse_patches(7, seed=5), **pools}
    return recipe(arm, pools, batch_size=batch_size, generated_share=share, root_seed=3, names=("detector", seed))


def test_every_arm_has_the_same_batch_size():
    for arm, counts in (("EXP", {"real": 8}), ("EXP+GEN", {"real": 6, "generated": 2}), ("EXP+RARE", None)):
        made = make(arm, batch_size=8, share=0.25)
        assert sum(made.counts.values()) == 8
        assert made.batch(0).images.shape == (8, 64, 64)
        assert counts is None or dict(made.counts) == counts


def test_a_step_is_drawn_without_the_steps_before():
    straight = [make("EXP+GEN").draw(step) for step in range(5)]
    alone = make("EXP+GEN").draw(4)
    for a, b in zip(straight[4], alone, strict=True):
        assert a.pool == b.pool
        assert (a.patches == b.patches).all()
        assert (a.symmetries == b.symmetries).all()


def test_all_patches_are_seen_equally_often():
    made = make(n=10, batch_size=4)
    seen = Counter(int(p) for step in range(5) for draw in made.draw(step) for p in draw.patches)
    assert seen == dict.fromkeys(range(10), 2)


def test_another_seed_draws_other_patches():
    a, b = make(seed=1).draw(0)[0], make(seed=2).draw(0)[0]
    assert (a.patches != b.patches).any()


def test_only_allowed_symmetries_are_drawn():
    made = make(real=replace(ellipse_patches(12), symmetries=(1, 6)))
    codes = {int(c) for step in range(20) for draw in made.draw(step) for c in draw.symmetries}
    assert codes == {1, 6}


def test_boxes_follow_their_masks_in_every_symmetry():
    made = make(real=replace(ellipse_patches(12), symmetries=tuple(range(8))), batch_size=6)
    checked = 0
    for step in range(8):
        batch = made.batch(step)
        for place in range(6):
            for box, label, number in zip(batch.boxes[place], batch.labels[place], batch.ids[place], strict=True):
                if label > 0:
                    assert box_of((batch.instances[place] == number).numpy()) == tuple(box.tolist())
                    checked += 1
    assert checked > 50


def by_hand(patches, numbers, codes):
    """Patch by patch with numpy: image, instance ids, truth (box, class, id) as float64 [N, 6]."""
    for number, code in zip(numbers, codes, strict=True):
        rows = patches.of(number)
        rows = rows[(rows["x2"] > rows["x1"]) & (rows["y2"] > rows["y1"])]
        boxes = symmetry_boxes(rows[["x1", "y1", "x2", "y2"]].to_numpy(float), code, patches.size)
        truth = np.column_stack([boxes, rows["class"], rows["instance"]])
        yield symmetry(patches.images[number], code), symmetry(patches.instances[number], code), truth


def assert_batch_is(batch, expected):
    assert batch.images.shape[0] == len(expected)
    assert batch.labels.shape[1] == max(1, *(len(truth) for *_, truth in expected))
    for place, (image, instances, truth) in enumerate(expected):
        n = len(truth)
        assert (batch.images[place].numpy() == image).all() and (batch.instances[place].numpy() == instances).all()
        assert (batch.boxes[place, :n].numpy() == truth[:, :4].astype(np.float32)).all()
        assert (batch.labels[place, :n].numpy() == truth[:, 4]).all()
        assert (batch.ids[place, :n].numpy() == truth[:, 5]).all()
        assert not batch.boxes[place, n:].any() and not batch.labels[place, n:].any() and not batch.ids[place, n:].any()


@pytest.mark.parametrize("arm", ["EXP", "EXP+GEN", "EXP+EXP", "EXP+PASTE"])
def test_batches_are_what_numpy_makes_patch_by_patch(arm):
    real = replace(ellipse_patches(12), symmetries=tuple(range(8)))
    table = real.table.copy()
    table.loc[0, "x2"] = table.loc[0, "x1"]  # nothing to learn from
    table.loc[1:, ["x1", "x2"]] += 0.3  # not only whole numbers survive
    real = replace(real, table=table.sample(frac=1, random_state=0))  # nor only sorted tables
    other = ellipse_patches(7, seed=5)
    many = {"instances": other.instances.astype(np.uint16) * 300, "symmetries": (2, 5)}
    other = replace(other, **many, table=other.table.assign(instance=other.table["instance"] * 300))
    made = make(arm, batch_size=6, real=real, generated=other)
    codes = set()
    for step in range(8):
        expected = []
        for draw in made.draw(step):
            codes |= set(draw.symmetries.tolist())
            rows = list(by_hand(made.pools[draw.pool], draw.patches, draw.symmetries))
            if draw.pool == "pasted":
                rng = seeds.generator(3, "detector", 1, "paste", step)
                numbers = rng.integers(12, size=len(rows))
                sources = by_hand(real, numbers, rng.choice(np.arange(8), size=len(rows)))
                rows = [copy_paste(target, source, rng) for target, source in zip(rows, sources, strict=True)]
            expected += rows
        assert_batch_is(made.batch(step), expected)
    assert codes == set(range(8))


def test_a_pool_on_the_cpu_copies_no_images(tmp_path):
    patches = ellipse_patches(4)
    np.save(tmp_path / "images.npy", patches.images)
    patches = replace(patches, images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    pool = Pool(patches, torch.device("cpu"))
    assert pool.images.data_ptr() == patches.images.ctypes.data and len(pool) == 4
    made = recipe("EXP+EXP", {"real": patches}, batch_size=4, generated_share=0.5, root_seed=1, names=())
    made.batch(0)
    assert len(set(map(id, made._on(torch.device("cpu")).values()))) == 1


def test_padding_is_marked_by_label_zero():
    batch = make(batch_size=12).batch(0)
    table = ellipse_patches(12).table
    assert int((batch.labels > 0).sum()) == len(table)
    assert (batch.boxes[batch.labels == 0] == 0).all()


def test_boxes_without_area_are_left_out():
    patches = ellipse_patches(4)
    table = patches.table.copy()
    table.loc[0, "x2"] = table.loc[0, "x1"]
    batch = make(real=replace(patches, table=table), batch_size=4).batch(0)
    assert int((batch.labels > 0).sum()) == len(table) - 1


def test_a_share_of_nothing_is_the_plain_arm():
    assert dict(make("EXP+GEN", share=0.0).counts) == {"real": 4}
    assert make("EXP+GEN", share=1.0).batch(0).images.shape[0] == 4


@pytest.mark.parametrize(
    ("arm", "pools", "message"),
    [
        ("EXP+GAN", {}, "no arm 'EXP[+]GAN'"),
        ("EXP", {"real": ellipse_patches(0)}, "no patches"),
        ("EXP", {"real": replace(ellipse_patches(2), images=None)}, "no patches with images"),
        ("EXP+FILTERED", {"generated": ellipse_patches(0)}, "kept none; lower faithfulness.least_confirmed"),
        ("EXP+GEN", {"generated": ellipse_patches(2, size=32)}, "differ in size .*64.*32"),
        ("EXP+GEN", {"generated": ellipse_patches(2, classes=1)}, "differ in classes"),
    ],
)
def test_unusable_pools_are_named(arm, pools, message):
    with pytest.raises(CompanionError, match=message):
        make(arm, **pools)


def test_a_missing_pool_is_named():
    with pytest.raises(CompanionError, match="needs generated patches"):
        recipe("EXP+GEN", {"real": ellipse_patches(2)}, batch_size=2, generated_share=0.5, root_seed=1, names=())


def test_images_stay_grey_bytes():
    assert make().batch(0).images.numpy().dtype == np.uint8


def test_controls_are_made_of_what_they_say():
    assert dict(make("GEN").counts) == {"generated": 4}
    again = make("EXP+EXP", n=12, batch_size=8, share=0.5)
    assert dict(again.counts) == {"real": 4, "again": 4}
    first, second = again.draw(0)
    assert (first.patches != second.patches).any()
    pasted = make("EXP+PASTE", n=12, batch_size=8, share=0.5)
    assert dict(pasted.counts) == {"real": 4, "pasted": 4}
    assert pasted.batch(3).images.equal(make("EXP+PASTE", n=12, batch_size=8, share=0.5).batch(3).images)


def test_pasted_batches_keep_boxes_and_masks_together():
    made = make("EXP+PASTE", n=12, batch_size=8, share=1.0)
    more = 0
    for step in range(6):
        batch = made.batch(step)
        for place in range(8):
            for box, label, number in zip(batch.boxes[place], batch.labels[place], batch.ids[place], strict=True):
                if label > 0:
                    assert box_of((batch.instances[place] == number).numpy()) == tuple(box.tolist())
        more += int((batch.labels > 0).sum())
    plain = sum(int((make(n=12, batch_size=8).batch(step).labels > 0).sum()) for step in range(6))
    assert more > 1.2 * plain


class Always:
    """A generator whose coin always falls on paste."""

    def random(self, n):
        return np.zeros(n)


def test_pasting_by_hand():
    target = np.full((8, 8), 100, dtype=np.uint8), np.zeros((8, 8), dtype=np.uint8), np.zeros((0, 6))
    target[1][2, 2], target[1][5:7, 5:7] = 1, 2
    truth = np.array([[2, 2, 3, 3, 1, 1], [5, 5, 7, 7, 3, 2]], dtype=float)
    source = np.full((8, 8), 150, dtype=np.uint8), np.zeros((8, 8), dtype=np.uint8), np.array([[2, 2, 4, 6, 2, 7.0]])
    source[1][2:6, 2:4], source[0][2:6, 2:4] = 7, 90
    image, instances, rows = copy_paste((*target[:2], truth), source, Always())
    # The one-pixel defect is hidden; the pasted one is 60 below its background, as it was at home.
    assert rows.tolist() == [[5, 5, 7, 7, 3, 2], [2, 2, 4, 6, 2, 3]]
    assert (image[2:6, 2:4] == 40).all() and (image[instances != 3] == 100).all()
    assert (target[0] == 100).all() and target[1][2, 2] == 1
