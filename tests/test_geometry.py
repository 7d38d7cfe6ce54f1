"""Symmetries and ellipses; boxes in every symmetry: test_detection_data.py."""

import numpy as np
import pytest
from conftest import ellipse

from companion.geometry import symmetry, symmetry_angle


@pytest.mark.parametrize("code", range(8))
def test_angles_follow_the_image(code):
    y, x = np.nonzero(symmetry(ellipse((101, 101), 50.5, 50.5, 80, 8, 30), code))
    values, vectors = np.linalg.eigh(np.cov(x, -y))  # y upwards, as displayed
    measured = np.rad2deg(np.arctan2(*vectors[::-1, np.argmax(values)])) % 180
    assert measured == pytest.approx(float(symmetry_angle(np.array(30.0), code)), abs=0.5)


def test_eight_symmetries_differ():
    image = np.arange(9).reshape(3, 3)
    assert len({symmetry(image, code).tobytes() for code in range(8)}) == 8
    with pytest.raises(ValueError, match="symmetry 8"):
        symmetry(image, 8)
