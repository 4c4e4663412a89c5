"""Columns as figures with intervals, worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankray.stats import OVERALL, Column, differences, estimates


def column(values: Mapping[str, Sequence[float]], pooled: bool = False) -> Column:
    return Column(values, pooled)


def test_a_mean_is_of_prompts_means_and_a_pooled_one_of_all_values() -> None:
    values = {"a": [1.0, 0.0, 0.0, 0.0], "b": [1.0]}
    found = estimates({"plain": column(values), "pooled": column(values, pooled=True)}, ["plain"])
    assert found["plain"].mean == pytest.approx((0.25 + 1.0) / 2)
    assert found["pooled"].mean == pytest.approx(2 / 5)
    assert (found["plain"].prompts, found["plain"].values) == (2, 5)


def test_overall_is_the_plain_mean_of_columns_whatever_their_sizes() -> None:
    columns = {
        "one": column({"a": [1.0], "b": [1.0], "c": [0.0], "d": [0.0]}),
        "two": column({"e": [1.0], "f": [1.0]}),
        "beside": column({"g": [0.0]}),
    }
    found = estimates(columns, ["one", "two"])
    assert found[OVERALL].mean == pytest.approx((0.5 + 1.0) / 2)
    assert (found[OVERALL].prompts, found[OVERALL].values) == (6, 6)
    # Prompts are drawn within their column: "two" cannot vary, and "one" moves the mean by half of its own change.
    assert (found["two"].low, found["two"].high) == (1.0, 1.0)
    assert found["one"].low == 0.0
    assert found["one"].high == 1.0
    assert (found[OVERALL].low, found[OVERALL].high) == (0.5, 1.0)


def test_a_column_called_overall_is_the_benchmarks_own() -> None:
    columns = {"overall": column({"a": [0.5], "b": [0.7]}), "entity": column({"a": [1.0, 1.0]}, pooled=True)}
    found = estimates(columns, ["overall"])
    assert list(found) == ["overall", "entity"]
    assert found["overall"].mean == pytest.approx(0.6)


def test_one_prompt_has_no_interval_and_no_picture_no_mean() -> None:
    found = estimates({"lonely": column({"a": [1.0, 0.0]}), "empty": column({"b": []})}, ["lonely", "empty"])
    assert (found["lonely"].mean, found["lonely"].low, found["lonely"].high) == (0.5, None, None)
    assert (found["empty"].mean, found["empty"].prompts) == (None, 0)
    assert found[OVERALL].mean == 0.5


def test_differences_are_paired_by_prompt() -> None:
    before = {"one": column({"a": [0.0], "b": [1.0], "c": [1.0]}), "two": column({"d": [0.0, 1.0]})}
    after = {"one": column({"a": [1.0], "b": [1.0], "c": [0.0]}), "two": column({"d": [1.0, 1.0]})}
    found = differences(before, after, ["one", "two"])
    one, whole = found["one"], found[OVERALL]
    assert (one.before, one.after, one.gain) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 0.0)
    assert (one.wins, one.losses) == (1, 1)
    assert (whole.before, whole.after) == (pytest.approx((2 / 3 + 0.5) / 2), pytest.approx((2 / 3 + 1) / 2))
    assert whole.gain == pytest.approx(0.25)
    assert (whole.wins, whole.losses) == (2, 1)
    assert (found["two"].low, whole.low) == (None, None), "one prompt cannot vary"


def test_a_pooled_difference_weighs_prompts_by_their_answers() -> None:
    before = {"entity": column({"a": [0.0, 0.0, 0.0], "b": [0.0]}, pooled=True)}
    after = {"entity": column({"a": [0.0, 0.0, 0.0], "b": [1.0]}, pooled=True)}
    assert differences(before, after, ["entity"])["entity"].gain == pytest.approx(1 / 4)


def test_values_of_other_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="different pictures"):
        differences({"x": column({"a": [1.0, 0.0]}, True)}, {"x": column({"a": [1.0]}, True)}, ["x"])


Tables = st.dictionaries(
    st.sampled_from("abcdefgh"), st.lists(st.floats(0, 1), min_size=1, max_size=3), min_size=2, max_size=8
)


@settings(max_examples=25)
@given(values=Tables, pooled=st.booleans())
def test_the_figure_is_the_columns_own_mean_and_lies_in_its_interval(
    values: dict[str, list[float]], pooled: bool
) -> None:
    one = Column(values, pooled)
    found = estimates({"one": one}, ["one"])
    for estimate in found.values():
        assert estimate.mean == pytest.approx(one.mean)
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low - 1e-9 <= estimate.high
        assert min(min(v) for v in values.values()) - 1e-9 <= estimate.low
    same = differences({"one": one}, {"one": one}, ["one"])["one"]
    assert (same.gain, same.low, same.high, same.wins, same.losses) == (0.0, 0.0, 0.0, 0, 0)


def test_the_interval_narrows_with_the_root_of_prompts() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for size in (100, 400):
        values = {str(n): [float(v)] for n, v in enumerate(rng.random(size) < 0.5)}
        found = estimates({"x": column(values)}, ["x"])["x"]
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    assert widths[0] == pytest.approx(2 * 1.96 * 0.05, rel=0.15)
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.15)
