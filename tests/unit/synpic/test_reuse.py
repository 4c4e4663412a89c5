"""What a larger job takes over of a finished dataset, and what becomes of it, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import small_dataset

from rankray import config, schema, store
from rankray.cluster.actors import JobContext
from rankray.config import ConfigError, ImagesConfig, SynPicConfig
from rankray.data.place import identity_of
from rankray.synpic import reuse, stages

REVISIONS = {"one": "r1", "two": "r2", **small_dataset.REWARDS}


def job(t: dict[str, Any], prompts: str = "p.txt") -> SynPicConfig:
    """The small dataset's job, whose reward `t` is set so."""
    rewards = [{"model": "pickscore", "name": name} for name in "rs"]
    tables = {
        "prompts": {"path": prompts},
        "generators": [
            {"model": "sdxl", "name": name, "samples": samples} for name, samples in (("one", 2), ("two", 1))
        ],
        "rewards": [*rewards, {"model": "pickscore", "name": "t", **t}],
        "seed": small_dataset.SEED,
        "output": "/o",
    }
    return config.build(SynPicConfig, tables)


def made_by(path: Path, of: SynPicConfig) -> str:
    """The small dataset, as the job `of` would have made it."""
    source = small_dataset.write(path)
    info = store.read(source).info
    (path / "dataset.json").write_text(json.dumps({**info, "identity": identity_of(of, REVISIONS)}))
    return source


def find(
    of: SynPicConfig, prompts: list[str], path: str, revisions: Mapping[str, str] = REVISIONS, **rows: Any
) -> reuse.Reuse:
    """What `of` takes over where its rows are so."""
    return reuse.find(of, identity_of(of, revisions, rows), prompts, path)


def test_another_threshold_takes_over_all_scores_and_ranks_anew(tmp_path: Path) -> None:
    """Of a's pictures t gave 0, 9 and 5: with `least` 6 the second alone is left, and r and s no longer prefer 0."""
    path = made_by(tmp_path / "d", job({"least": 1.0}))
    held = find(job({"least": 6.0}), ["a", "d"], path)
    assert held.rewards == ("r", "s", "t")
    _, columns = held.staged(["a", "d"])
    ids = [schema.prompt_id(prompt) for prompt in "ad"]
    staged = pa.table({"prompt_id": ids, "prompt": ["a", "d"], **columns}).slice(0, 1)
    context = JobContext(
        small_dataset.SEED,
        ImagesConfig(),
        "",
        (("one", 2), ("two", 1)),
        ("r", "s", "t"),
        1,
        None,
        (),
        {"t": 6.0},
    )
    due = schema.ranked_schema({"one": "r1", "two": "r2"}, small_dataset.REWARDS)
    table = reuse.attach(staged, held=held, context=context)
    (row,) = stages.rank_block(table, context=context, schema_out=due).to_pylist()
    assert [c["scores"] for c in row["candidates"]] == small_dataset.SCORES["a"]
    assert [c["rank"] for c in row["candidates"]] == [0, 0, 0], "one that is alone is compared with none"
    assert [c["error"] for c in row["candidates"]] == [
        "t: 0 is below least = 6: left out of the ranking",
        None,
        "t: 5 is below least = 6: left out of the ranking",
    ]


def test_what_decides_a_score_is_refused_where_it_differs(tmp_path: Path) -> None:
    path = made_by(tmp_path / "d", job({}))
    with pytest.raises(ConfigError) as caught:
        find(job({"dtype": "float32", "least": 6.0}), ["a", "d"], path)
    assert str(caught.value).splitlines()[1:] == ["  rewards.t.dtype: None there, 'float32' here"]


def test_what_a_row_decides_is_refused_where_it_changed(tmp_path: Path) -> None:
    """A release that sets other steps draws other pictures; of an older dataset nobody knows them."""
    of, key = job({"least": 6.0}), "generators.1.run_with.steps"
    path = made_by(tmp_path / "d", job({}))
    assert find(of, ["a", "d"], path, **{key: 28}).samples == {"one": 2, "two": 1}
    info = json.loads((tmp_path / "d" / "dataset.json").read_text())
    info["identity"][key] = 50
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(info))
    assert find(of, ["a", "d"], path, **{key: 50}).samples == {"one": 2, "two": 1}
    with pytest.raises(ConfigError) as caught:
        find(of, ["a", "d"], path, **{key: 28})
    assert str(caught.value).splitlines()[1:] == ["  generators.two.run_with.steps: 50 there, 28 here"]


def test_weights_are_the_same_wherever_they_lie(tmp_path: Path) -> None:
    """By their hash or commit; of others the place decides."""
    path = made_by(tmp_path / "d", job({"source": "/a/w"}))
    there = job({"source": "/b/w"})
    with pytest.raises(ConfigError, match="source: '/a/w' there, '/b/w' here"):
        find(there, ["a", "d"], path)
    hashed = {**REVISIONS, "t": "sha256:" + "0f" * 32}
    info = json.loads((tmp_path / "d" / "dataset.json").read_text())
    info["identity"]["revision.t"] = hashed["t"]
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(info))
    assert find(there, ["a", "d"], path, hashed).rewards == ("r", "s", "t")
    with pytest.raises(ConfigError, match="source: 'elsewhere' there, None here"):
        find(job({}), ["a", "d"], path, hashed)  # the table's own, which may be of another variant


def test_a_threshold_alone_is_nothing_to_make(tmp_path: Path) -> None:
    path = made_by(tmp_path / "d", job({}))
    with pytest.raises(
        ConfigError, match=r"holds all of this job; .* another `least` is taken where there is"
    ):
        find(job({"least": 6.0}), ["a", "b", "c"], path)
