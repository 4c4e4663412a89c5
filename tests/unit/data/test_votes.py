"""Votes are kept as they are cast, the last about a pair counts, and what is made of them is counted by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_dataset
from small_dataset import SEED

from rankray import schema, store
from rankray.config import ConfigError
from rankray.data import rerank, votes
from rankray.data.rerank import Reranking
from rankray.data.votes import Picture, Vote


def vote(prompt: str, places: tuple[int, int], win: float | None, voter: str = "ann", **other: Any) -> Vote:
    row_id = schema.prompt_id(prompt)
    pair = tuple(
        Picture(place=k, generator=name, seed=schema.candidate_seed(SEED, row_id, name, sample))
        for k, (name, sample) in enumerate(small_dataset.SLOTS)
        if k in places
    )
    return Vote(voter=voter, prompt_id=row_id, pair=pair, left=0, win=win, **other)


def cast(path: Path, *given: Vote) -> str:
    for one in given:
        votes.append(path, one)
    return str(path)


def test_the_last_vote_about_a_pair_counts_for_its_voter(tmp_path: Path) -> None:
    path = cast(
        tmp_path / "new" / "v.jsonl",
        vote("a", (0, 1), 1.0),
        vote("a", (0, 1), 0.0, voter="bob"),
        vote("a", (0, 2), 1.0),
        vote("a", (0, 1), 0.5),
        vote("a", (0, 2), None),
        vote("a", (0, 1), 1.0, list="geneval"),
    )
    found = votes.read([path])
    assert [(one.voter, one.list, one.win) for one in found] == [
        ("ann", "", 0.5),
        ("bob", "", 0.0),
        ("ann", "geneval", 1.0),
    ]
    assert votes.read([path, path]) == found


def test_a_half_line_at_the_end_is_no_vote_and_gives_way_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    cast(path, vote("a", (0, 1), 1.0))
    with path.open("a") as file:
        file.write('{"at": "2026-')
    assert len(votes.read([str(path)])) == 1
    cast(path, vote("b", (0, 1), 1.0))
    assert [one.prompt_id for one in votes.read([str(path)])] == [schema.prompt_id(p) for p in "ab"]


def test_a_voters_name_may_hold_unicodes_other_line_ends(tmp_path: Path) -> None:
    voters = ["a\u2028nn", "b\x85ob"]
    path = cast(tmp_path / "v.jsonl", *(vote("a", (0, 1), 1.0, voter=name) for name in voters))
    assert [one.voter for one in votes.read([path])] == voters


@pytest.mark.parametrize("text", ['{"voter": "a"}\n', "[]\n", "no\n"])
def test_what_is_no_vote_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "v.jsonl").write_text(text)
    with pytest.raises(ConfigError, match="line 1 is no vote"):
        votes.read([str(tmp_path / "v.jsonl")])
    with pytest.raises(ConfigError, match="cannot be read"):
        votes.read([str(tmp_path / "gone.jsonl")])


def test_a_score_is_the_mean_of_a_candidates_votes() -> None:
    """1 beats 0 once and ties with it once: 0 has (0 + 1/2) / 2, 1 has (1 + 1/2 + 0) / 3, 2 has 1 / 1."""
    rows = [small_dataset.row("a")]
    given = [vote("a", (0, 1), 0.0), vote("a", (0, 1), 0.5, voter="bob"), vote("a", (1, 2), 0.0)]
    counted = votes.count([*given, vote("z", (0, 1), 1.0)], rows)
    key = ("", schema.prompt_id("a"))
    np.testing.assert_allclose(counted.scores(key, 3), [0.25, 0.5, 1.0])
    assert np.isnan(counted.scores(("", "b"), 3)).all()
    assert (counted.votes, counted.unknown, counted.voters) == (3, 1, 2)
    assert votes.count(given[::-1], rows).digest == counted.digest
    assert votes.count(given[:2], rows).digest != counted.digest


def test_a_candidate_is_found_again_where_places_have_moved() -> None:
    """A generator more before the others, as `extend` may put it."""
    row = small_dataset.row("a")
    more = {**row["candidates"][0], "generator": "zero", "seed": 1}
    moved = {**row, "candidates": [more, *row["candidates"]]}
    counted = votes.count([vote("a", (0, 2), 1.0)], [moved])
    assert counted.pairs == {("", row["prompt_id"]): [(1, 3, 1.0)]}
    gone = {**row, "candidates": row["candidates"][:2]}
    assert votes.count([vote("a", (0, 2), 1.0)], [gone]).unknown == 1


def test_who_wins_and_which_reward_agrees() -> None:
    """Two votes between "one" and "two", a win and a tie for "two"; the third is between two of one generator."""
    rows = [small_dataset.row(prompt) for prompt in "abc"]
    given = [vote("a", (0, 2), 0.0), vote("b", (1, 2), 0.5), vote("a", (0, 1), 1.0), vote("b", (0, 1), 0.0)]
    found = votes.summary(votes.count(given, rows), ((row, list("rst")) for row in rows))
    assert (found["votes"], found["prompts"], found["ties"]) == (4, 2, 1)
    (between,) = found["between"]
    assert (between["first"], between["second"], between["rate"]) == ("two", "one", 0.75)
    assert (between["wins"], between["ties"], between["losses"]) == (1, 1, 0)
    # Scores of a are (3, 30, 0), (2, 20, 9), (1, 10, 5): r and s see its first vote otherwise and its second alike, t
    # the other way round. Of b, t has no score for 0, and r and s agree. Ties are left out.
    assert {one["name"]: (one["agreed"], one["of"]) for one in found["rewards"]} == {
        "r": (2, 3),
        "s": (2, 3),
        "t": (1, 2),
    }


def test_votes_become_a_reward_that_may_be_silent(tmp_path: Path) -> None:
    """Prompt a by r, s and t: 2 beats 1 in none, by votes in one of one; 0 has no vote and keeps its comparisons.

    Of 0: 4 of 6 before and after. Of 1: 4 wins of 6, then 4 of 7. Of 2: 1 of 6, then 2 of 7.
    """
    path, other = small_dataset.write(tmp_path / "d"), str(tmp_path / "o")
    file = cast(tmp_path / "v.jsonl", vote("a", (1, 2), 0.0))
    info = rerank.run(path, other, Reranking(votes=[file]), lambda line: None)
    rows = {row["prompt"]: row["candidates"] for row in store.read(other).rows()}
    before = {row["prompt"]: row["candidates"] for row in store.read(path).rows()}
    assert [c["win_probability"] for c in before["a"]] == pytest.approx([4 / 6, 4 / 6, 1 / 6])
    assert [c["win_probability"] for c in rows["a"]] == pytest.approx([4 / 6, 4 / 7, 2 / 7])
    assert [c["scores"][3] for c in rows["a"]] == pytest.approx([math.nan, 0.0, 1.0], nan_ok=True)
    for prompt in "bc":  # nobody voted: nothing has changed but a column
        for old, new in zip(before[prompt], rows[prompt], strict=True):
            assert repr(new["win_probability"]) == repr(old["win_probability"])
            assert (new["rank"], new["error"]) == (old["rank"], old["error"])
    assert info["failures"]["by_model"] == {"t": 1, "two": 1}
    assert store.validate(other).failures == 2
    assert [reward["name"] for reward in info["rewards"]] == ["r", "s", "t", "human"]
    assert info["votes"]["votes"] == 1
    again = rerank.run(other, str(tmp_path / "again"), Reranking(["human"]), lambda line: None)
    assert store.validate(str(tmp_path / "again")).failures == again["failures"]["total"] == 1
    with pytest.raises(ConfigError, match="has a reward 'human' already"):
        rerank.run(other, str(tmp_path / "n"), Reranking(votes=[file]), lambda line: None)


def test_a_reward_that_must_speak_and_does_not_is_still_a_fault(tmp_path: Path) -> None:
    path, other = small_dataset.write(tmp_path / "d"), tmp_path / "o"
    file = cast(tmp_path / "v.jsonl", vote("a", (1, 2), 0.0))
    rerank.run(path, str(other), Reranking(votes=[file]), lambda line: None)
    text = (other / "dataset.json").read_text()
    (other / "dataset.json").write_text(text.replace('"partial": true', '"partial": false'))
    with pytest.raises(store.DatasetError, match="a score is NaN, and no error says why"):
        store.validate(str(other))


def test_votes_on_something_else_are_refused_and_more_votes_are_another_dataset(tmp_path: Path) -> None:
    path, other = small_dataset.write(tmp_path / "d"), str(tmp_path / "o")
    foreign = cast(tmp_path / "f.jsonl", vote("z", (0, 1), 1.0))
    with pytest.raises(ConfigError, match=r"none of 1 votes in .* is about a candidate"):
        rerank.run(path, other, Reranking(votes=[foreign]), lambda line: None)
    file = cast(tmp_path / "v.jsonl", vote("a", (1, 2), 0.0))
    rerank.run(path, other, Reranking(votes=[file]), lambda line: None)
    cast(tmp_path / "v.jsonl", vote("b", (1, 2), 0.0))
    with pytest.raises(ConfigError, match=r"rerank\.votes"):
        rerank.run(path, other, Reranking(votes=[file]), lambda line: None)
