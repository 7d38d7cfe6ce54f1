"""The command line's own conveniences."""

import pytest

from companion.cli import repeat_options


@pytest.mark.parametrize(
    ("given", "spread"),
    [
        ("evaluate p t --iou 0.3 0.5 --json", "evaluate p t --iou 0.3 --iou 0.5 --json"),
        ("evaluate --iou .3 .5 1 p t", "evaluate --iou .3 --iou .5 --iou 1 p t"),
        ("evaluate p t --confidence 0.1 0.2 --iou 0.5", "evaluate p t --confidence 0.1 --confidence 0.2 --iou 0.5"),
        ("evaluate p t --iou --json", "evaluate p t --iou --json"),
        ("run smoke --split 2", "run smoke --split 2"),
    ],
)
def test_several_values_may_follow_one_option(given, spread):
    assert repeat_options(given.split()) == spread.split()
