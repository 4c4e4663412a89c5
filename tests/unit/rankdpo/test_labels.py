"""Another labelling of stored scores: by hand, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankray import config, ranking, schema
from rankray.config import ConfigError
from rankray.config.rankdpo import LabelsConfig, RankDPOConfig
from rankray.rankdpo import labels

INFO = {
    "generators": [
        {"name": "one", "samples": 2},
        {"name": "two", "samples": 1},
        {"name": "three", "samples": 1},
    ],
    "rewards": [{"name": "r"}, {"name": "s"}],
}
SCORES = [[3.0, 1.0], [2.0, 2.0], [1.0, 3.0], [0.0, 0.0]]
RANK = [1, 2, 3, 4]
ID = schema.prompt_id("a red circle")
IDS = [schema.prompt_id(f"prompt {n}") for n in range(400)]


def resolved(seed: int = 0, **changes: object) -> labels.Labelling:
    found = labels.resolve(INFO, seed, **config.build(LabelsConfig, changes).model_dump())
    assert found is not None
    return found


def test_the_datasets_own_ranking_needs_no_labelling() -> None:
    assert labels.resolve(INFO, 0, **LabelsConfig().model_dump()) is None


@pytest.mark.parametrize(
    "changes",
    [{"prompt_share": 0.999999}, {"pairs": "within"}, {"samples": {"one": 2, "two": 1, "three": 1}}],
)
def test_what_asks_nobody_else_ranks_as_the_dataset_does(changes: dict[str, object]) -> None:
    """A dataset that `rerank --weights r=0` made, by another aggregation: its r votes in no part of it either."""
    for aggregation in ("win_probability", "mean_z"):
        how = {"aggregation": aggregation, "weights": {"r": 0.0, "s": 1.0}}
        given = config.build(LabelsConfig, changes).model_dump()
        found = labels.resolve({**INFO, "ranking": how}, 0, **given)
        assert found is not None
        phi, rank = found(ID, SCORES, RANK)
        due = ranking.strength(aggregation, SCORES, [0.0, 1.0])
        assert phi.tolist() == due.astype(np.float32).tolist()
        assert rank.tolist() == [3, 2, 1, 4]
        for said in ({"rewards": ("r", "s")}, {"aggregation": "win_probability"}):
            named = labels.resolve({**INFO, "ranking": how}, 0, **{**given, **said})
            assert named is not None
            assert named(ID, SCORES, RANK)[0].tolist() == pytest.approx(
                ranking.win_probability(SCORES).tolist()
            )


def test_one_reward_ranks_by_its_scores() -> None:
    phi, rank = resolved(rewards=["s"])(ID, SCORES, RANK)
    assert rank.tolist() == [3, 2, 1, 4]
    assert phi.tolist() == pytest.approx([1 / 3, 2 / 3, 1.0, 0.0])


def test_candidates_that_are_not_named_take_no_part() -> None:
    # Of the first generator its first sample, and the third generator's: places 0 and 3.
    found = resolved(samples={"one": 1, "three": 1})
    assert found.candidates == (0, 3)
    phi, rank = found(ID, SCORES, RANK)
    assert rank.tolist() == [1, 0, 0, 2]
    assert phi[[0, 3]].tolist() == [1.0, 0.0]
    assert np.isnan(phi[[1, 2]]).all()


def test_a_candidate_that_the_dataset_left_out_stays_out() -> None:
    phi, rank = resolved(rewards=["s"])(ID, SCORES, [1, 2, 0, 3])
    assert rank.tolist() == [2, 1, 0, 3]
    assert np.isnan(phi[2])


def test_a_row_with_one_candidate_left_has_no_preference() -> None:
    phi, rank = resolved(samples={"one": 1, "two": 1})(ID, SCORES, [1, 2, 0, 3])
    assert rank.tolist() == [0, 0, 0, 0]
    assert np.isnan(phi).all()


def test_a_reward_that_failed_is_left_out_of_its_comparisons() -> None:
    scores = [[np.nan, 1.0], [2.0, 2.0], [1.0, 3.0], [0.0, 0.0]]
    phi, _ = resolved(samples={"one": 2, "two": 1})(ID, scores, RANK)
    assert phi[:3].tolist() == pytest.approx(ranking.win_probability(np.array(scores[:3])).tolist())


def test_random_labels_are_a_permutation_that_seed_and_prompt_decide() -> None:
    first, again, other = (
        resolved(0, aggregation="random"),
        resolved(0, aggregation="random"),
        resolved(1, aggregation="random"),
    )
    ranks = [first(row, SCORES, RANK)[1].tolist() for row in IDS]
    assert all(sorted(rank) == [1, 2, 3, 4] for rank in ranks)
    assert ranks == [again(row, SCORES, RANK)[1].tolist() for row in IDS]
    assert ranks != [other(row, SCORES, RANK)[1].tolist() for row in IDS]
    # No candidate is first more often than chance has it: 100 of 400, standard deviation 8.7.
    firsts = np.bincount([rank.index(1) for rank in ranks], minlength=4)
    assert (abs(firsts - 100) < 35).all()


@given(st.floats(0.05, 0.9))
def test_a_share_of_prompts_is_about_that_share_and_grows_by_adding(share: float) -> None:
    less, more = resolved(prompt_share=share), resolved(prompt_share=share + 0.05)
    taken = {row for row in IDS if less.takes(row)}
    assert abs(len(taken) / len(IDS) - share) < 0.1
    assert taken <= {row for row in IDS if more.takes(row)}


def test_prompts_that_take_part_are_named() -> None:
    half = resolved(prompt_share=0.5)
    assert half.taken(IDS) == [row for row in IDS if half.takes(row)]
    with pytest.raises(
        ConfigError, match=r"labels\.prompt_share = 0\.5 leaves no prompt of the dataset; raise it"
    ):
        half.taken(row for row in IDS if not half.takes(row))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rewards": ["rr"]},
            "labels.rewards: the dataset has no reward 'rr' (did you mean 'r'?); it has r, s",
        ),
        (
            {"samples": {"tow": 1}},
            "labels.samples: the dataset has no generator 'tow' (did you mean 'two'?); it has one, two, three",
        ),
        ({"samples": {"two": 2}}, "labels.samples.two = 2; the dataset has 1 a prompt, take 1 to 1"),
        (
            {"samples": {"two": 1}},
            "labels.samples leave one candidate a prompt, and a preference takes two; name more of them",
        ),
    ],
)
def test_what_a_dataset_lacks_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(**changes)
    assert str(caught.value) == message


def test_labels_are_part_of_a_runs_identity_only_where_there_are_any() -> None:
    tables = {"dataset": "d", "output": "o", "model": {"model": "shapes-sdxl"}}
    plain = config.build(RankDPOConfig, tables).identity()
    assert not any(key.startswith("labels") for key in plain)
    other = config.build(RankDPOConfig, {**tables, "labels": {"rewards": ["r"]}}).identity()
    assert other["labels.rewards"] == ["r"]


def test_pairs_within_a_generator_and_across_two() -> None:
    within, across = (resolved(pairs=name).comparable(4) for name in ("within", "across"))
    assert within is not None
    assert across is not None
    # Places 0 and 1 are the first generator's, 2 and 3 the others'.
    assert [(i, j) for i, j in zip(*np.nonzero(within), strict=True) if i < j] == [(0, 1)]
    assert (across == ~within).all()
    assert resolved(samples={"one": 2}).comparable(4) is None


def test_pairs_that_no_prompt_has_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="'within' compares two samples of one generator, and none take part"
    ):
        resolved(pairs="within", samples={"one": 1, "two": 1})
    with pytest.raises(ConfigError, match="'across' compares samples of two generators, and none take part"):
        resolved(pairs="across", samples={"one": 2})


def test_a_run_that_was_begun_before_there_were_pairs_goes_on() -> None:
    def identity(**given: object) -> set[str]:
        tables = {"dataset": "/d", "output": "/o", "model": {"model": "sdxl"}, "labels": given}
        return set(config.build(RankDPOConfig, tables).identity())

    assert not any(key.startswith("labels") for key in identity())
    assert "labels.pairs" not in identity(prompt_share=0.5)
    assert "labels.pairs" in identity(pairs="within")


def test_imported_rows_are_ranked_by_a_reward_and_have_no_generators_places() -> None:
    """Of any number of candidates each, as tables and merged datasets have them."""
    info = {**INFO, "imported": {"format": "csv"}, "generators": [{"name": "one", "samples": 0}]}
    found = labels.resolve(info, 0, rewards=["s"])
    assert found is not None
    assert found(ID, SCORES, RANK)[1].tolist() == [3, 2, 1, 4]
    assert found(ID, [*SCORES, [9.0, 9.0]], [*RANK, 5])[1].tolist() == [4, 3, 2, 5, 1]
    for changes in ({"samples": {"one": 1}}, {"pairs": "within"}):
        with pytest.raises(ConfigError, match="rows that were imported have no such places"):
            labels.resolve(info, 0, **changes)  # type: ignore[arg-type]
