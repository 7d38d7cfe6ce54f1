"""Published and own configurations of the detector, one row each.

| preset  | network       | sees a patch at                   | batch, optimiser, passes            | for              |
|---------|---------------|-----------------------------------|-------------------------------------|------------------|
| paper   | R50-FPN, 44 M | 800 px (the authors': 640 to 800) | 2, SGD 2.5e-4 with a drop, 200,000  | the authors'     |
| native  | R50-FPN, 44 M | its own size                      | 32, SGD 4e-3 (linear rule), 200,000 | the same, faster |
| compact | 3.4 M         | its own size                      | 32, AdamW with one cycle, 64,000    | one GPU          |
| tiny    | 0.9 M         | its own size                      | 8, AdamW with one cycle, 960        | CPU              |

A pass is one image in one optimiser step. Whether a row loses accuracy against another is measured, not assumed:
``benchmarks/schedule.py``.
"""

from __future__ import annotations

from companion.params import Detection

PRESETS: dict[str, Detection] = {
    "paper": Detection(
        network="r50-fpn", resize_px=800, anchor_sizes_px=[[4, 8, 16, 32, 64, 128, 256]] * 5, rois_per_image=128,
        proposals=1000, optimizer="sgd", learning_rate=2.5e-4, warmup_steps=1000, batch_size=2, steps=100_000,
        checkpoint_every=2000,
    ),
    # An anchor of 4 px at 800 px is one of 1.3 px in a patch of 256 px, where the smallest defects have 4.
    "native": Detection(
        network="r50-fpn", anchor_sizes_px=[[4, 6], [8, 12], [16, 24], [32, 48], [64, 96]], rois_per_image=128,
        proposals=1000, optimizer="sgd", learning_rate=4e-3, warmup_steps=500, batch_size=32, steps=6250,
        checkpoint_every=250,
    ),
    "compact": Detection(
        network="compact", anchor_sizes_px=[[8, 12], [16, 24], [32, 64]], rois_per_image=128, proposals=200,
        learning_rate=1e-3, batch_size=32, steps=2000, checkpoint_every=200,
    ),
    "tiny": Detection(),
}  # fmt: skip
