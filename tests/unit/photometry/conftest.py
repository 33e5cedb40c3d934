"""One rendered field, and what is measured on it, for all photometry tests."""

import numpy as np
import pytest
from reduction import reduce_field
from starfield import make_field, random_stars


@pytest.fixture(scope="session")
def reduced():
    """1100 x 1000 px at the density of 8,600 stars a channel."""
    shape = (1100, 1000)
    stars = random_stars(np.random.default_rng(11), shape, 1000)
    return reduce_field(make_field(12, shape, stars))
