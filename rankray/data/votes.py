"""People's votes between two pictures of a prompt: a file of JSON lines, and what follows from it.

A line is written and on the disk before the next pair is shown, and none is changed later: a vote that was undone, or
cast again, is a further line, and the last one about a pair counts for its voter. So files of several people may be
put together by `cat`. A candidate's score is the mean of its votes, 1 for a win, one half for a tie, 0 for a loss: a
reward as any other, `human`, but for one thing. Nobody votes on everything, and a candidate without a vote is not a
failure: its score is NaN, Algorithm 1 leaves its comparisons by this reward out, and the other rewards rank it as
they did. With one vote of two candidates of four, phi of the two has one comparison more, of the others none.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rankray import stats
from rankray.config import ConfigError

HUMAN = "human"
"""The reward's name."""


class Picture(BaseModel):
    """A candidate: its place in the row, and what tells it where a dataset was extended and places have moved."""

    model_config = ConfigDict(frozen=True)

    place: int = Field(ge=0)
    generator: str
    seed: int | None


class Vote(BaseModel):
    """One line of a file.

    Attributes:
        list: of an evaluation's prompt lists; empty for a dataset.
        pair: two candidates, the earlier in the row first, whichever side they stood on.
        left: which of the two stood on the left.
        win: the share of a win that the first gets: 1, 0.5 for a tie, 0; None takes the vote back.
    """

    model_config = ConfigDict(frozen=True)

    at: str = Field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    )
    voter: str
    list: str = ""
    prompt_id: str
    pair: tuple[Picture, Picture]
    left: int = Field(ge=0, le=1)
    win: float | None = Field(ge=0.0, le=1.0)

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """What it is about, and whose it is."""
        return self.voter, self.list, self.prompt_id, self.pair[0].place, self.pair[1].place


def read(paths: Iterable[str]) -> list[Vote]:
    """The votes that count, in the order in which they were cast first.

    A half line at a file's end, of a machine that went down, is left out.

    Raises:
        ConfigError: a file cannot be read, or has a line that is no vote.
    """
    found: dict[tuple[str, str, str, int, int], Vote] = {}
    for path in paths:
        try:
            # Not splitlines(): a name may hold any of Unicode's other line ends.
            lines = Path(path).expanduser().read_text("utf-8", "replace").split("\n")
        except OSError as error:
            raise ConfigError(f"votes {path} cannot be read ({error.strerror}); give a votes.jsonl") from None
        for number, line in enumerate(lines, 1):
            try:
                vote = Vote.model_validate_json(line)
            except ValidationError as error:
                if number == len(lines):  # nothing, where the file ends as it should
                    continue
                why = error.errors()[0]["msg"]
                raise ConfigError(f"votes {path}, line {number} is no vote ({why}); take it out") from None
            found[vote.key] = vote
    return [vote for vote in found.values() if vote.win is not None]


def append(path: Path, vote: Vote) -> None:
    """Adds a line, and returns when it is on the disk; a half line before it, which was never answered, goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(vote.model_dump_json().encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())


Key = tuple[str, str]
"""(list, prompt id)."""


@dataclass(frozen=True)
class Counted:
    """Votes as places in rows.

    Attributes:
        pairs: by row, (i, j, share of a win for i) of each vote.
        unknown: votes about candidates that are not there.
        voters: how many people.
        digest: sha256 of what counts, whatever the files' order.
    """

    pairs: dict[Key, list[tuple[int, int, float]]] = field(default_factory=dict)
    unknown: int = 0
    voters: int = 0
    digest: str = ""

    @property
    def votes(self) -> int:
        """How many count."""
        return sum(map(len, self.pairs.values()))

    def scores(self, key: Key, candidates: int) -> npt.NDArray[np.float32]:
        """float32[K]: each candidate's mean over its votes; NaN where it has none."""
        total, votes = np.zeros(candidates), np.zeros(candidates)
        for i, j, win in self.pairs.get(key, ()):
            total[[i, j]] += win, 1.0 - win
            votes[[i, j]] += 1.0
        found = np.full(candidates, np.nan)
        np.divide(total, votes, out=found, where=votes > 0)
        return found.astype(np.float32)


def count(votes: Sequence[Vote], rows: Iterable[Mapping[str, Any]]) -> Counted:
    """The votes about the rows, which have `prompt_id`, `candidates`, and `list` where they are an evaluation's."""
    by_row: dict[Key, list[Vote]] = {}
    for vote in votes:
        by_row.setdefault((vote.list, vote.prompt_id), []).append(vote)
    pairs: dict[Key, list[tuple[int, int, float]]] = {}
    for row in rows:
        key = (row.get("list", ""), row["prompt_id"])
        for vote in by_row.get(key, ()):
            i, j = (_place(picture, row["candidates"]) for picture in vote.pair)
            if i is not None and j is not None and i != j and vote.win is not None:
                pairs.setdefault(key, []).append((i, j, vote.win))
    lines = json.dumps(sorted((*key, sorted(found)) for key, found in pairs.items()))
    counted = sum(map(len, pairs.values()))
    return Counted(
        pairs,
        unknown=len(votes) - counted,
        voters=len({vote.voter for vote in votes}),
        digest=f"sha256:{hashlib.sha256(lines.encode('utf-8')).hexdigest()}",
    )


def _place(picture: Picture, candidates: Sequence[Mapping[str, Any]]) -> int | None:
    """Where the candidate stands in the row now; None where it cannot be told."""

    def is_it(candidate: Mapping[str, Any]) -> bool:
        return (candidate["generator"], candidate["seed"]) == (picture.generator, picture.seed)

    if picture.place < len(candidates) and is_it(candidates[picture.place]):
        return picture.place
    there = [place for place, candidate in enumerate(candidates) if is_it(candidate)]
    return there[0] if len(there) == 1 else None


def summary(counted: Counted, rows: Iterable[tuple[Mapping[str, Any], Sequence[str]]]) -> dict[str, Any]:
    """Who wins, and which rewards see it as people do.

    Args:
        rows: each with the names of its rewards.

    Returns:
        votes, prompts, voters, ties, unknown; `between`: of each two generators first, second, wins, losses, ties,
        rate, low, high, p_value; `rewards`: of each name, agreed, of, share, low, high: of the votes for one of two
        pictures, those that the reward orders at all, and orders alike.
    """
    tally: dict[tuple[str, str], list[float]] = {}
    agreed: dict[str, list[bool]] = {}
    wins: list[float] = []
    for row, names in rows:
        candidates = row["candidates"]
        for i, j, win in counted.pairs.get((row.get("list", ""), row["prompt_id"]), ()):
            wins.append(win)
            one, other = candidates[i]["generator"], candidates[j]["generator"]
            if one != other:
                first = min(one, other)
                tally.setdefault((first, max(one, other)), []).append(win if one == first else 1.0 - win)
            for name, ours, theirs in zip(
                names, candidates[i]["scores"], candidates[j]["scores"], strict=True
            ):
                if win != 0.5 and (ours > theirs or ours < theirs) and name != HUMAN:
                    agreed.setdefault(name, []).append((ours > theirs) == (win > 0.5))
    return {
        "votes": len(wins),
        "prompts": len(counted.pairs),
        "voters": counted.voters,
        "ties": wins.count(0.5),
        "unknown": counted.unknown,
        "between": [_between(*names, found) for names, found in sorted(tally.items())],
        "rewards": [_agreement(name, found) for name, found in agreed.items()],
    }


def _between(first: str, second: str, found: Sequence[float]) -> dict[str, Any]:
    """The better one first."""
    if sum(found) < len(found) / 2:
        first, second, found = second, first, [1.0 - win for win in found]
    wins, ties = sum(win > 0.5 for win in found), sum(win == 0.5 for win in found)
    losses, rate = len(found) - wins - ties, sum(found) / len(found)
    low, high = stats.share_interval(rate, len(found))
    named = {"first": first, "second": second, "wins": wins, "losses": losses, "ties": ties}
    return {**named, "rate": rate, "low": low, "high": high, "p_value": stats.sign_test(wins, losses)}


def _agreement(name: str, found: Sequence[bool]) -> dict[str, Any]:
    share = sum(found) / len(found)
    low, high = stats.share_interval(share, len(found))
    return {"name": name, "agreed": sum(found), "of": len(found), "share": share, "low": low, "high": high}
