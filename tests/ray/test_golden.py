"""What jobs leave, as tests/golden has it: files, the JSON written last, columns, rows. It costs no job.

Two datasets that others use are compared here. A training, an evaluation, an alignment and an ablation are compared
where they run: in test_rankdpo, test_evaluate, test_align and test_ablate.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Toys, left, rows

pytestmark = pytest.mark.ray

ROWS = 4


def as_left(output: Path) -> dict[str, Any]:
    """A dataset's files, dataset.json, columns, file metadata, and its first rows by identifier, without pictures."""
    schema = pq.read_schema(min((output / "data").glob("*.parquet")))
    found = rows(output)
    first = [found[key] for key in sorted(found)[:ROWS]]
    for row in first:
        for candidate in row["candidates"]:
            candidate["image"] = candidate["image"] is not None
    return {
        **left(output, "dataset.json", but="encoded/"),  # a training's, where one has been before
        "columns": [str(field) for field in schema],
        "metadata": {key.decode(): value.decode() for key, value in sorted(schema.metadata.items())},
        "rows": first,
    }


def test_a_dataset_of_toy_models(golden: Callable[..., None], toys: Toys) -> None:
    golden("toys.json", as_left(toys.output))


def test_a_dataset_of_the_shapes_world(golden: Callable[..., None], dataset: Path) -> None:
    golden("shapes.json", as_left(dataset))
