"""The ranking of a block, without a cluster."""

from __future__ import annotations

import math

import pyarrow as pa

from rankray import schema
from rankray.cluster.actors import GENERATED_TYPE, SCORED_TYPE, JobContext
from rankray.config import ImagesConfig
from rankray.synpic import stages


def context() -> JobContext:
    return JobContext(
        seed=0,
        images=ImagesConfig(),
        output="",
        generators=(("one", 2), ("two", 1)),
        rewards=("r", "s"),
        abort_after=1,
        meter=None,
    )


def entry(seed: int, error: str | None = None) -> dict:
    image = None if error else b"png"
    size = None if error else 8
    return {"seed": seed, "image": image, "path": None, "width": size, "height": size, "error": error}


def test_rank_block_by_hand() -> None:
    table = pa.table(
        {
            "prompt_id": ["a", "b"],
            "prompt": ["A", "B"],
            "generated:one": pa.array(
                [[entry(1), entry(2)], [entry(4), entry(5, "ValueError: no")]], GENERATED_TYPE
            ),
            "generated:two": pa.array([[entry(3)], [entry(6)]], GENERATED_TYPE),
            "scored:r": pa.array(
                [
                    [{"score": 1.0}, {"score": 3.0}, {"score": 2.0}],
                    [{"score": 1.0}, {"score": math.nan}, {"score": math.nan, "error": "ValueError: nan"}],
                ],
                SCORED_TYPE,
            ),
            "scored:s": pa.array(
                [
                    [{"score": 5.0}, {"score": 5.0}, {"score": 4.0}],
                    [{"score": 0.5}, {"score": math.nan}, {"score": 0.25}],
                ],
                SCORED_TYPE,
            ),
        }
    )
    out = stages.rank_block(
        table,
        context=context(),
        schema_out=schema.ranked_schema({"one": "x", "two": "y"}, {"r": "", "s": ""}),
    )
    first, second = (row["candidates"] for row in out.to_pylist())
    assert [c["generator"] for c in first] == ["one", "one", "two"]
    # Wins of 4 comparisons: one/0 beats two in s; one/1 beats both in r and two in s; two beats one/0 in r.
    assert [c["win_probability"] for c in first] == [0.25, 0.75, 0.25]
    assert [c["rank"] for c in first] == [2, 1, 3]
    assert [c["error"] for c in first] == [None] * 3
    # In b only reward s compares one/0 with two; one/1 has no image.
    assert [c["rank"] for c in second] == [1, 0, 2]
    assert [c["win_probability"] for c in second][::2] == [1.0, 0.0]
    assert math.isnan(second[1]["win_probability"])
    assert second[1]["image"] is None
    assert [c["error"] for c in second] == [None, "ValueError: no", "r: ValueError: nan"]
    assert schema.schema_names(out.schema) == ({"one": "x", "two": "y"}, {"r": "", "s": ""})
