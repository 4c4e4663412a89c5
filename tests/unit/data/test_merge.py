"""Datasets as one: prompts beside each other, candidates of one prompt in one row where they can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_dataset

from rankray import commands, ranking, schema, store
from rankray.config import ConfigError
from rankray.data import convert, importing, merge, rerank, votes
from rankray.data.pickapic import Importing


def quiet(line: str) -> None:
    pass


def other(path: Path, prompts: str = "ad", rewards: str = "tsr", **changes: Any) -> str:
    """A dataset of other generators, scored by the same rewards in another order: candidates' scores are 10 n."""
    source = small_dataset.write(path)
    names = {name: small_dataset.REWARDS[name] for name in rewards}
    info = json.loads((path / "dataset.json").read_text())
    rows = []
    for prompt in prompts:
        row_id = schema.prompt_id(prompt)
        candidates = []
        for k in (0, 1):
            scores = [{"r": 2.5, "s": 25.0, "t": 7.0}[name] + 10 * k for name in names]
            seed = schema.candidate_seed(small_dataset.SEED, row_id, "three", k)
            picture = {"bytes": small_dataset.picture(prompt, k + 1), "path": None}
            ranked = {
                "win_probability": float(k),
                "rank": 2 - k,
                "error": None,
                "score_errors": [None] * len(names),
            }
            place = {"generator": "three", "seed": seed, "image": picture, "width": 4, "height": 2}
            candidates.append({**place, "scores": scores, **ranked})
        rows.append({"prompt_id": row_id, "prompt": prompt, "candidates": candidates})
    for file in (path / "data").iterdir():
        file.unlink()
    table = pa.Table.from_pylist(rows, schema.ranked_schema({"three": "r3"}, names))
    pq.write_table(table, path / "data" / "0.parquet")
    info |= {
        "generators": [{"name": "three", "model": "three", "revision": "r3", "samples": 2}],
        "rewards": [{"name": name, "model": name, "revision": names[name]} for name in names],
        "rows": len(rows),
        "candidates": 2 * len(rows),
        "images": 2 * len(rows),
        "failures": {"total": 0, "by_model": {}, "tolerance": 0.0, "examples": []},
        **changes,
    }
    (path / "dataset.json").write_text(json.dumps(info))
    store.validate(source)
    return source


def by_prompt(path: str) -> dict[str, dict[str, Any]]:
    return {row["prompt"]: row for row in store.read(path).rows(images=True)}


def test_candidates_of_one_prompt_become_one_row(tmp_path: Path) -> None:
    inputs = [small_dataset.write(tmp_path / "d"), other(tmp_path / "e")]
    info = merge.run(inputs, str(tmp_path / "o"), quiet)
    found = by_prompt(str(tmp_path / "o"))
    assert sorted(found) == ["a", "b", "c", "d"]
    a = found["a"]["candidates"]
    assert [c["generator"] for c in a] == ["one", "one", "two", "three", "three"]
    scores = [*small_dataset.SCORES["a"], [2.5, 25, 7], [12.5, 35, 17]]
    assert [c["scores"] for c in a] == scores, "in the first dataset's order"
    assert [c["rank"] for c in a] == ranking.rank(ranking.win_probability(scores)).tolist()
    # Of 12 comparisons each: 3 + 3 + 0 of the first, 1 + 1 + 3, 0 + 0 + 1, 2 + 2 + 2, all of the last.
    assert [round(12 * c["win_probability"], 5) for c in a] == [6, 5, 1, 6, 12]
    assert [c["rank"] for c in found["d"]["candidates"]] == [2, 1]
    assert [item["name"] for item in info["generators"]] == ["one", "two", "three"]
    assert (info["rows"], info["imported"]["comparable"]) == (4, True)
    assert store.validate(str(tmp_path / "o")) == store.Validation(4, 13, 12, 2)


def test_what_is_there_twice_is_there_once(tmp_path: Path) -> None:
    inputs = [small_dataset.write(tmp_path / name) for name in "de"]
    info = merge.run(inputs, str(tmp_path / "o"), quiet)
    assert repr(by_prompt(str(tmp_path / "o"))) == repr(by_prompt(inputs[0]))
    assert info["prompts"]["duplicates"] == 3
    assert store.validate(str(tmp_path / "o")) == store.Validation(3, 9, 8, 2)


def test_people_who_were_not_asked_have_not_failed(tmp_path: Path) -> None:
    """One vote, in both datasets: it is silent of most candidates, which `validate` takes for no failure either."""
    sources = [small_dataset.write(tmp_path / "d"), small_dataset.write(tmp_path / "e", {"0": "ac"})]
    pair = [
        votes.Picture(
            place=k, generator="one", seed=schema.candidate_seed(small_dataset.SEED, row_id, "one", k)
        )
        for row_id in [schema.prompt_id("a")]
        for k in (0, 1)
    ]
    vote = votes.Vote(voter="ann", prompt_id=schema.prompt_id("a"), pair=tuple(pair), left=0, win=0.0)
    votes.append(tmp_path / "v.jsonl", vote)
    inputs = [str(tmp_path / f"{n}-voted") for n in range(2)]
    for source, voted in zip(sources, inputs, strict=True):
        rerank.run(source, voted, rerank.Reranking(votes=[str(tmp_path / "v.jsonl")]), quiet)
    info = merge.run(inputs, str(tmp_path / "o"), quiet)
    assert [reward.get("partial", False) for reward in info["rewards"]] == [False, False, False, True]
    assert info["failures"]["by_model"] == {"t": 1, "two": 1}
    assert store.validate(str(tmp_path / "o")) == store.Validation(3, 9, 8, 2)


def test_one_alone_stays_what_it_is(tmp_path: Path) -> None:
    source = small_dataset.write(tmp_path / "d")
    info = merge.run([source], str(tmp_path / "o"), quiet)
    assert repr(by_prompt(str(tmp_path / "o"))) == repr(by_prompt(source))
    assert info["seed"] == small_dataset.SEED
    assert "imported" not in info
    assert store.validate(str(tmp_path / "o")).rows == 3


def choices(path: Path) -> list[str]:
    """Imports of people's pairs: of a best 0, worst 2, and of b 1 before 0; by t of a best 1, worst 0, of b a tie."""
    source, places = small_dataset.write(path / "d"), []
    for name, how in (("first", rerank.Reranking()), ("second", rerank.Reranking(rewards=["t"]))):
        rerank.run(source, str(path / f"r{name}"), how, quiet)
        convert.run(str(path / f"r{name}"), str(path / f"p{name}"), "pickapic", quiet)
        places.append(str(path / name))
        importing.run([str(path / f"p{name}" / "data")], places[-1], Importing(), quiet)
    return places


def test_peoples_pairs_stay_beside_each_other(tmp_path: Path) -> None:
    """Choices of the same caption are not compared over pairs that nobody saw together; the same pair is there once."""
    places = choices(tmp_path)
    assert [store.read(place).info["rows"] for place in places] == [2, 1]
    info = merge.run([*places, places[0] + "/"], str(tmp_path / "o"), quiet)
    rows = list(store.read(str(tmp_path / "o")).rows(images=True))
    assert sorted(row["prompt"] for row in rows) == ["a", "a", "b"]
    assert len({row["prompt_id"] for row in rows}) == 3
    assert all(sorted(c["rank"] for c in row["candidates"]) == [1, 2] for row in rows)
    assert (info["imported"]["comparable"], info["prompts"]["duplicates"]) == (False, 2)
    assert store.validate(str(tmp_path / "o")).candidates == 6


@pytest.mark.parametrize("people", [False, True])
def test_a_killed_merge_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, people: bool) -> None:
    if people:
        places = choices(tmp_path)
        inputs = [*places, places[0] + "/"]
    else:
        inputs = [small_dataset.write(tmp_path / "d"), other(tmp_path / "e")]
    due = merge.run(inputs, str(tmp_path / "whole"), quiet)
    written = store.write_rows

    def killed(path: str, *rest: Any) -> int:
        if path.endswith("01-000000.parquet"):
            raise KeyboardInterrupt
        return written(path, *rest)

    monkeypatch.setattr(store, "write_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        merge.run(inputs, str(tmp_path / "o"), quiet)
    assert not store.complete(str(tmp_path / "o"))
    monkeypatch.setattr(store, "write_rows", written)
    info = merge.run(inputs, str(tmp_path / "o"), quiet)
    found = [
        [repr(row) for row in store.read(str(tmp_path / name)).rows(images=True)] for name in ("o", "whole")
    ]
    assert found[0] == found[1]
    assert (info["rows"], info["candidates"]) == (due["rows"], due["candidates"])
    said: list[str] = []
    merge.run(inputs, str(tmp_path / "o"), said.append)
    assert said == [f"{tmp_path / 'o'} is complete already; nothing to do"]


def set_up(path: Path, kind: str, label: str, **settings: object) -> str:
    """The small dataset, of which one model was set so, beside others."""
    source = small_dataset.write(path)
    info = store.read(source).info
    own = {"model": "m", "name": label, "samples": len(settings), **settings}
    info["identity"] |= {f"{kind}.0.model": "other", f"{kind}.0.name": None, f"revision.{label}": "r1"}
    info["identity"] |= {f"{kind}.1.{key}": value for key, value in own.items()}
    (path / "dataset.json").write_text(json.dumps(info))
    return source


@pytest.mark.parametrize(("kind", "label"), [("generators", "one"), ("rewards", "s")])
def test_a_label_that_was_set_otherwise_is_not_taken_for_the_same(
    tmp_path: Path, kind: str, label: str
) -> None:
    """A seed's picture is there once: the second dataset's were left out without a word."""
    first = set_up(tmp_path / "first", kind, label, steps=50, source="/weights/w")
    same = set_up(tmp_path / "same", kind, label, steps=50, source="w", cfg=None)  # as the hub has it
    second = set_up(tmp_path / "second", kind, label, steps=20)
    unknown = small_dataset.write(tmp_path / "unknown")
    merged = str(tmp_path / "merged")
    info = merge.run([unknown, first, same], merged, quiet)
    assert [item["settings"] for item in info[kind] if "settings" in item] == [
        {"model": "m", "name": label, "steps": 50, "source": "w"}
    ]
    for one in (first, merged):
        with pytest.raises(ConfigError) as caught:
            merge.run([one, second], str(tmp_path / "o"), quiet)
        assert str(caught.value).startswith(
            f"{kind[:-1]} '{label}' was set otherwise in {one} than here, in {second} "
            "(source: 'w' there, absent here; steps: 50 there, 20 here); the same label is due to mean the same model: "
        )
        assert str(caught.value).count("\n") == 0
    assert not (tmp_path / "o").exists()


def test_a_row_that_changed_is_seen_where_both_know_it(tmp_path: Path) -> None:
    """Also behind a dataset that does not know it, and through a merge."""
    known = {"run_with.steps": 50, "run_with.call": {"clean_caption": False}}
    places = [
        set_up(tmp_path / name, "generators", "one", **own)
        for name, own in (("old", {}), ("a", known), ("b", {**known, "run_with.steps": 28}))
    ]
    info = merge.run(places[:2], str(tmp_path / "merged"), quiet)
    (settings,) = [item["settings"] for item in info["generators"] if "settings" in item]
    assert settings == {**known, "model": "m", "name": "one"}
    for first in (places[:2], [str(tmp_path / "merged")]):
        with pytest.raises(ConfigError, match=r"here, in \S+/b \(run_with.steps: 50 there, 28 here\)"):
            merge.run([*first, places[2]], str(tmp_path / "o"), quiet)


@pytest.mark.parametrize("revision", ["sha256:" + "0f" * 32, "0f" * 20])
def test_weights_are_the_same_wherever_they_lie(tmp_path: Path, revision: str) -> None:
    """By their hash or commit, which is in both; a server of the same name elsewhere is another."""
    places = [
        set_up(tmp_path / name, "generators", "one", steps=50, source=f"/{name}/{name}") for name in "ab"
    ]
    with pytest.raises(ConfigError, match="source: 'a' there, 'b' here"):
        merge.run(places, str(tmp_path / "o"), quiet)
    for place in map(Path, places):
        info = store.read(str(place)).info
        next(item for item in info["generators"] if item["name"] == "one")["revision"] = revision
        info["identity"]["revision.one"] = revision
        (place / "dataset.json").write_text(json.dumps(info))
    info = merge.run(places, str(tmp_path / "o"), quiet)
    (settings,) = [item["settings"] for item in info["generators"] if "settings" in item]
    assert settings == {"model": "m", "name": "one", "steps": 50, "source": "a"}


def test_what_does_not_go_together_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"D": small_dataset.write(tmp_path / "d"), "E": other(tmp_path / "e", rewards="rs")}
    places["F"] = other(tmp_path / "f")
    info = store.read(places["F"]).info
    info["rewards"][0]["revision"] = "another"
    (tmp_path / "f" / "dataset.json").write_text(json.dumps(info))
    (tmp_path / "t.csv").write_text("prompt,image,rank\na,b,1\n")
    places |= {"T": str(tmp_path / "t.csv"), "O": str(tmp_path / "o")}
    cases = (
        (["D", "E", "O"], "is ranked by r, s, t, "),
        (["D", "F", "O"], "reward 't' is of revision z in "),
        (["D", "T", "O"], "is a table: import each by itself, and then their outputs together"),
        (["D", "E", "D"], "is ranked by"),
        (["D", "D"], "is one of the datasets; take another output"),
    )
    for words, message in cases:
        *inputs, output = (places[word] for word in words)
        assert commands.main(["import", *inputs, "--output", output]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
        assert not (tmp_path / "o").exists()
    with pytest.raises(ConfigError, match="rankray rerank --rewards"):
        merge.run([places["D"], places["E"]], places["O"], quiet)
    assert commands.main(["import", places["D"], places["D"], "--output", places["O"]]) == 0
    assert "3 of 6 rankings" in capsys.readouterr().out
    assert (tmp_path / "o" / "report.html").stat().st_size > 10_000
