"""Labels of pictures, by hand."""

import numpy as np

from rankray.shapes.prompts import parse
from rankray.shapes.renderer import compose
from recipes.shapes.contents import layout


def test_layout_counts_and_places_what_was_drawn():
    items = compose(parse("two red circles"), np.random.default_rng(0))
    patches, counts, places = layout(items)
    assert counts.sum() == 2
    assert counts[0] == 2  # circle, red is kind 0
    centre = [np.mean([i.x for i in items]) / 32 - 1, np.mean([i.y for i in items]) / 32 - 1]
    np.testing.assert_allclose(places[0], centre, rtol=1e-5)
    assert patches[int(items[0].y) // 8 * 8 + int(items[0].x) // 8] == 0
    assert set(patches.tolist()) == {0, 24}
