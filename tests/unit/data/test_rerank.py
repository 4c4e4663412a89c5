"""A dataset ranked anew is whole and valid, and nothing but its ranking and dropped scores has changed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import small_dataset

from rankray import store
from rankray.config import ConfigError
from rankray.data import rerank
from rankray.data.rerank import Reranking


def quiet(line: str) -> None:
    pass


def rows(path: str) -> dict[str, list[dict[str, Any]]]:
    return {row["prompt"]: row["candidates"] for row in store.read(path).rows(images=True)}


def ranks(path: str, prompt: str) -> list[int]:
    return [candidate["rank"] for candidate in rows(path)[prompt]]


def test_ranked_as_it_was_it_is_what_it_was(tmp_path: Path) -> None:
    path, again = small_dataset.write(tmp_path / "d"), str(tmp_path / "again")
    info = rerank.run(path, again, Reranking(), quiet)
    assert repr(rows(again)) == repr(rows(path))  # NaN and all
    assert store.validate(again) == store.validate(path)
    assert info["failures"]["by_model"] == {"t": 1, "two": 1}
    assert not (tmp_path / "again" / "_work").exists()


def test_fewer_rewards_with_weights(tmp_path: Path) -> None:
    """Prompt a: by r and t with t twice, candidate 1 wins 1 + 2 * 2 of 6 comparisons, 2 wins 2 of 6, 0 wins 2 of 6."""
    path, other = small_dataset.write(tmp_path / "d"), str(tmp_path / "o")
    info = rerank.run(path, other, Reranking(["t", "r"], {"t": 2.0}), quiet)
    found = rows(other)["a"]
    assert [c["win_probability"] for c in found] == pytest.approx([2 / 6, 5 / 6, 2 / 6])
    assert [c["rank"] for c in found] == [2, 1, 3]
    assert [c["scores"] for c in found] == [[0, 3], [9, 2], [5, 1]]
    assert [c["image"]["bytes"] for c in found] == [small_dataset.picture("a", k) for k in range(3)]
    assert [reward["name"] for reward in info["rewards"]] == ["t", "r"]
    assert info["ranking"] == {"aggregation": "win_probability", "weights": {"t": 2.0, "r": 1.0}}
    assert store.validate(other).failures == 2


def test_a_dropped_rewards_failure_goes_with_it(tmp_path: Path) -> None:
    path, other = small_dataset.write(tmp_path / "d"), str(tmp_path / "o")
    info = rerank.run(path, other, Reranking(["r", "s"]), quiet)
    assert [c["error"] for c in rows(other)["b"]] == [None, None, None]
    assert rows(other)["c"][2]["error"] == "one: out of memory"
    assert (info["failures"]["total"], info["failures"]["by_model"]) == (1, {"two": 1})
    assert store.validate(other).failures == 1


@pytest.mark.parametrize(
    ("name", "strengths"),
    [("borda", [4 / 6, 4 / 6, 1 / 6]), ("majority", [1.0, 0.5, 0.0])],
)
def test_other_aggregations(tmp_path: Path, name: str, strengths: list[float]) -> None:
    """Prompt a: shares below are 1, 1, 0 for 0; 1/2, 1/2, 1 for 1; 0, 0, 1/2 for 2."""
    path, other = small_dataset.write(tmp_path / "d"), str(tmp_path / "o")
    rerank.run(path, other, Reranking(aggregation=name), quiet)
    assert [c["win_probability"] for c in rows(other)["a"]] == pytest.approx(strengths)
    assert math.isnan(rows(other)["c"][2]["win_probability"])
    assert ranks(other, "c") == [1, 2, 0]
    assert store.validate(other).rows == 3


def test_validate_knows_how_it_was_ranked(tmp_path: Path) -> None:
    path, other = small_dataset.write(tmp_path / "d"), tmp_path / "o"
    rerank.run(path, str(other), Reranking(aggregation="majority"), quiet)
    info = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(
        json.dumps({**info, "ranking": {**info["ranking"], "aggregation": "borda"}})
    )
    with pytest.raises(store.DatasetError, match="the scores make it"):
        store.validate(str(other))


def test_a_killed_run_goes_on_and_a_finished_one_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = small_dataset.write(tmp_path / "d"), tmp_path / "o"

    class Killed(BaseException):
        pass

    whole = rerank._rewrite

    def killed(source: Any, file: str, *rest: Any) -> None:
        if file.endswith("1.parquet"):
            raise Killed
        whole(source, file, *rest)

    monkeypatch.setattr(rerank, "_rewrite", killed)
    with pytest.raises(Killed):
        rerank.run(path, str(other), Reranking(), quiet)
    with pytest.raises(store.DatasetError, match=r"1 data files, but no dataset\.json"):
        store.read(str(other))
    with pytest.raises(
        ConfigError, match=r"was begun with another configuration(.*\n)+.*rerank\.aggregation"
    ):
        rerank.run(path, str(other), Reranking(aggregation="borda"), quiet)
    monkeypatch.undo()
    first = (other / "data" / "0.parquet").stat().st_mtime_ns
    rerank.run(path, str(other), Reranking(), quiet)
    assert (other / "data" / "0.parquet").stat().st_mtime_ns == first
    assert store.validate(str(other)).rows == 3
    said: list[str] = []
    rerank.run(path, str(other), Reranking(), said.append)
    assert said == [f"{other} is complete already; nothing to do"]


def test_what_does_not_fit_is_named_and_nothing_written(tmp_path: Path) -> None:
    path = small_dataset.write(tmp_path / "d")
    faults = {
        "the dataset has no reward 'q'; it has r, s, t": Reranking(["r", "q"]),
        "name at least one, and each once": Reranking(["r", "r"]),
        "a weight for 's', which is not ranked by; weigh r, t": Reranking(["r", "t"], {"s": 2.0}),
        "not negative, and not all 0": Reranking(["r"], {"r": -1.0}),
        "aggregation 'bordo'; allowed: win_probability, borda": Reranking(aggregation="bordo"),
    }
    for message, how in faults.items():
        with pytest.raises(ConfigError, match=message):
            rerank.run(path, str(tmp_path / "o"), how, quiet)
    assert not (tmp_path / "o").exists()
    with pytest.raises(ConfigError, match="is the dataset itself"):
        rerank.run(path, path, Reranking(), quiet)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "letters.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"letters.txt is there, and no rankray job began it"):
        rerank.run(path, str(tmp_path / "o"), Reranking(), quiet)
    assert [file.name for file in (tmp_path / "o").iterdir()] == ["letters.txt"]


def test_a_threshold_stays_with_the_dataset(tmp_path: Path) -> None:
    """s asks for 15: of prompt a's candidates the last is out, of b's and c's all are."""
    path, other = small_dataset.write(tmp_path / "d"), str(tmp_path / "o")
    info = json.loads((tmp_path / "d" / "dataset.json").read_text())
    how = {"aggregation": "win_probability", "weights": {}, "least": {"s": 15.0}}
    (tmp_path / "d" / "dataset.json").write_text(json.dumps({**info, "ranking": how}))
    with pytest.raises(store.DatasetError, match=r"rank \[1, 2, 3\], the scores make it \[1, 2, 0\]"):
        store.validate(path)
    made = rerank.run(path, other, Reranking(weights={"s": 0.0}), quiet)
    assert made["ranking"]["least"] == {"s": 15.0}
    assert [ranks(other, prompt) for prompt in "abc"] == [[1, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert rows(other)["a"][2]["error"] == "s: 10 is below least = 15: left out of the ranking"
    assert rows(other)["a"][2]["scores"] == [1, 10, 5]
    assert store.validate(other).failures == 2
    with pytest.raises(ConfigError, match="leaves candidates out that 's' scores low, so that stays"):
        rerank.run(path, str(tmp_path / "p"), Reranking(["r", "t"]), quiet)
