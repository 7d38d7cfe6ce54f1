"""Pools beside the simulated one: masks painted by the phantom, real masks again, and who may read them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import ellipse_patches

from companion import stages
from companion.diffusion import measures, pools
from companion.errors import CompanionError
from companion.geometry import symmetry
from companion.config.profile import load_profile
from companion.phantom.scene import CLASSES


def phantom_masks(n=12, **more):
    patches = ellipse_patches(n, **more)
    return replace(patches, images=None, classes=CLASSES, index=patches.index.assign(pixel_size_nm=0.88))


def test_painted_defects_lie_in_their_masks():
    masks, profile = phantom_masks(20), load_profile("smoke")
    images = pools.painted(masks, profile, "here")
    assert images.shape == masks.instances.shape and images.dtype == np.uint8
    contrast = measures.mask_contrast(replace(masks, images=images))["contrast"]
    assert (contrast > 0).mean() > 0.95 and contrast.mean() > 0.1
    assert np.array_equal(images, pools.painted(masks, profile, "here"))
    assert not np.array_equal(images, pools.painted(masks, profile, "there"))
    empty = replace(masks, instances=np.zeros_like(masks.instances), table=masks.table[:0])
    background = pools.painted(empty, profile, "here")
    assert background.mean() > images.mean() and 0 < background.std() < 60


def test_a_cut_defect_stays_in_its_patch():
    masks = phantom_masks(2)
    instances = np.zeros_like(masks.instances)
    rows, columns = np.ogrid[: masks.size, : masks.size]
    instances[0] = (columns - masks.size + 3) ** 2 + (rows - 32) ** 2 < 100  # goes on beyond the right border
    table = masks.table.iloc[:1].assign(
        patch=0, instance=1, x1=masks.size - 12.0, y1=23.0, x2=float(masks.size), y2=42.0, touches_border=True
    )
    table["class"] = 3
    drawn = replace(masks, instances=instances, table=table)
    images = pools.painted(drawn, load_profile("smoke"), "x").astype(float)
    dark = images[0, 26:39, -9:].mean() / images[0, 26:39, 20:30].mean()
    beside = images[1, 26:39, :9].mean() / images[1, 26:39, 20:30].mean()  # the next tile of the same micrograph
    assert dark < 0.92 < beside


def test_only_the_phantom_can_be_painted():
    with pytest.raises(CompanionError, match="'loops_316L' is not of it"):
        pools.painted(phantom_masks(1), load_profile("smoke", dataset="loops_316L"))
    with pytest.raises(CompanionError, match=r"EXP\+RENDER paints masks .* for dataset phantom, not 'loops_316L'"):
        load_profile("smoke", dataset="loops_316L", arms=["EXP", "EXP+RENDER"])
    with pytest.raises(CompanionError, match=r"EXP\+FILTERED is filtered by an EXP detector; add EXP"):
        load_profile("smoke", arms=["GEN", "EXP+FILTERED"])


def test_real_masks_come_round_in_every_symmetry():
    train = replace(ellipse_patches(3), symmetries=(0, 5))
    masks = pools.real_masks(train, 8)
    assert masks.images is None and masks.symmetries == (0,) and len(masks) == 8
    for k, (patch, code) in enumerate([(0, 0), (1, 0), (2, 0), (0, 5), (1, 5), (2, 5), (0, 0), (1, 0)]):
        assert np.array_equal(masks.label_maps()[k], symmetry(train.label_maps()[patch], code))
    assert masks.index["symmetry"].tolist() == [0, 0, 0, 5, 5, 5, 0, 0]
    assert len(masks.of(0)) == len(train.of(0)) == len(masks.of(3))


def test_a_pool_is_made_only_for_arms_that_read_it():
    usual = [stage.address for stage in stages.matrix(load_profile("smoke"))]
    assert not [address for address in usual if "resynth" in address or "render" in address or "kept" in address]
    arms = ["EXP", "EXP+FILTERED", "EXP+RESYNTH", "EXP+RENDER"]
    seen, found = set(), {}
    for stage in stages.matrix(load_profile("smoke", arms=arms)):
        assert {other.address for other, _ in stage.upstream.values()} <= seen, stage.address
        seen.add(stage.address)
        found[stage.address] = stage
    new = seen - set(usual)
    pools_made = {f"split-1/n-10/generator-1/generated-{pool}" for pool in ("resynth", "render")}
    assert new == pools_made | {f"split-1/n-10/{arm}/seed-{k}" for arm in arms[1:] for k in (1, 2)}
    inputs = found["split-1/n-10/EXP+FILTERED/seed-2"].inputs
    assert inputs["generated"].parts[-2:] == ("faithfulness", "kept")
    judge, _ = found["split-1/n-10/generator-1/faithfulness"].upstream["detector"]
    assert judge.address == "split-1/n-10/EXP/seed-1"
    drawn = found["split-1/n-10/generator-1/generated-render"].upstream["simulated"][0]
    assert drawn.address == "split-1/n-10/simulated-plain"


def test_a_generator_of_its_own_for_each_seed():
    arms = ["EXP", "EXP+GEN", "EXP+RESYNTH", "EXP+RENDER", "EXP+FILTERED"]
    profile = load_profile("smoke", arms=arms, generator_per_seed=True)
    found, seen = {}, set()
    for stage in stages.matrix(profile):
        assert {other.address for other, _ in stage.upstream.values()} <= seen, stage.address
        seen.add(stage.address)
        found[stage.address] = stage
    condition = "split-1/n-10"
    assert {a for a in found if a.endswith("/diffusion")} == {f"{condition}/generator-{k}/diffusion" for k in (1, 2)}
    for seed in (1, 2):
        for arm, pool in (("EXP+GEN", "plain"), ("EXP+RARE", "rare"), ("EXP+RESYNTH", "resynth")):
            read, _ = found[f"{condition}/{arm}/seed-{seed}"].upstream["generated"]
            assert read.address == f"{condition}/generator-{seed}/generated-{pool}"
            assert read.upstream["diffusion"][0].address == f"{condition}/generator-{seed}/diffusion"
        kept = found[f"{condition}/EXP+FILTERED/seed-{seed}"].upstream["generated"]
        assert (kept[0].address, kept[1]) == (f"{condition}/generator-{seed}/faithfulness", "kept/")
        assert found[f"{condition}/generator-{seed}/faithfulness"].upstream["detector"][0].keys["seed"] == 1
        # The phantom paints without a network: one pool serves all seeds.
        painted, _ = found[f"{condition}/EXP+RENDER/seed-{seed}"].upstream["generated"]
        assert painted.address == f"{condition}/generator-1/generated-render"
    assert f"{condition}/generator-2/generated-render" not in found
    weights = [found[f"{condition}/generator-{k}/diffusion"].seed("weights") for k in (1, 2)]
    assert weights[0] != weights[1]
