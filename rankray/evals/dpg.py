"""DPG-Bench: what share of a long prompt's propositions does a picture show?

Source: Hu et al. 2024 (ELLA), `compute_dpg_bench.py` of the authors' repository. A prompt comes with yes-or-no
questions in a dependency graph ("is there a chair?" before "is the chair red?"). A question counts where its answer is
yes and all that it depends on counts; a picture's score is the share of its questions that count, a prompt's the mean
over its pictures, a benchmark's the mean over prompts. The prompts and questions are those of `dpg_bench.csv`, read
from a path: 1,065 prompts x 4 pictures, about 13 questions each. `dpg_judge.py` says which model is asked.

The authors' code has three quirks, without which figures do not compare with published ones. Each is the default here
and can be mended: its reader drops the table's first line (`keep_first`), children listed before their parents escape
their grandparents' fall (`any_order`), and categories are of the bare answers on a prompt's last picture alone
(`all_pictures`). Departures: a parent that was never asked counts as no, where the authors' code ends with a key error;
prompts that come without questions are asked sentence by sentence, which is no published figure, and the column
"sentence" says so.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankray import evals
from rankray.evals import Column, Judgement, read_lines

ROOT = 0
CATEGORIES = ("global", "entity", "attribute", "relation", "other")
SENTENCE = "sentence"
"""Category of what is asked where a prompt comes without questions."""
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


@dataclass(frozen=True)
class Question:
    """One proposition of a prompt.

    Attributes:
        text: the question in words.
        category: "entity - whole", "attribute - color", ...: what stands before the proposition's brackets.
        parents: ids of the questions that it depends on; (0,) or () for none.
    """

    text: str
    category: str
    parents: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """A prompt with its questions by id."""

    item_id: str
    prompt: str
    questions: Mapping[int, Question]

    @property
    def dependency(self) -> dict[int, list[int]]:
        """Parents of each question, as `score` takes them."""
        return {number: list(question.parents) for number, question in self.questions.items()}


def read(lines: Iterable[str], *, keep_first: bool = False) -> list[Item]:
    """Items of the published table (CSV, a line a question), in its order.

    Args:
        keep_first: keep the first line of data, which the authors' reader drops, so that the first prompt lacks its
            first question, on which others depend.

    Raises:
        ValueError: a column is missing, a number is none, or a question stands twice; it names the line.
    """
    table = csv.DictReader(lines)
    gone = [name for name in COLUMNS if name not in (table.fieldnames or ())]
    if gone:
        raise ValueError(f"columns {', '.join(gone)} are missing; give DPG-Bench's table of questions")
    prompts: dict[str, str] = {}
    questions: dict[str, dict[int, Question]] = {}
    for place, line in enumerate(table):
        item = line["item_id"]
        if place == 0 and not keep_first:
            continue
        try:
            number = int(line["proposition_id"])
            parents = tuple(int(word) for word in line["dependency"].split(",") if word.strip())
        except ValueError:
            raise ValueError(
                f"line {table.line_num}: proposition_id {line['proposition_id']!r} or dependency "
                f"{line['dependency']!r} is no number"
            ) from None
        mine = questions.setdefault(item, {})
        if number in mine:
            raise ValueError(f"line {table.line_num}: question {number} of item {item!r} stands twice")
        prompts.setdefault(item, line["text"])
        category = line["tuple"].split("(")[0].strip()
        mine[number] = Question(line["question_natural_language"], category, parents)
    return [Item(item, prompts[item], mine) for item, mine in questions.items()]


def read_items(path: str, *, keep_first: bool = False) -> list[evals.Item]:
    """Prompts with their questions as data: {"item_id": ..., "questions": {"1": {"text", "category", "parents"}}}.

    Args:
        path: the published table (.csv), a directory that holds one, or JSON lines of `item_id`, `prompt` and
            `questions`, a list of {"id", "text", "category", "parents"}; lines without questions are asked sentence by
            sentence.
        keep_first: of a table, as `read` has it.

    Raises:
        ValueError: there is no such file, or it is of another form; it names the line.
    """
    place = Path(path)
    if place.is_dir():
        tables = sorted(place.glob("*.csv"))
        if len(tables) != 1:
            raise ValueError(f"{path} holds {len(tables)} .csv files; name DPG-Bench's table of questions")
        place = tables[0]
    if place.suffix == ".jsonl":
        return [_item(number, line) for number, line in enumerate(read_lines(str(place)), 1) if line.strip()]
    return [
        evals.Item(item.prompt, as_data(item)) for item in read(read_lines(str(place)), keep_first=keep_first)
    ]


def _item(number: int, line: str) -> evals.Item:
    try:
        entry = json.loads(line)
        prompt = entry["prompt"]
        asked = entry.get("questions")
        questions = (
            sentences(prompt)
            if asked is None
            else {int(one["id"]): _question(one["text"], one["category"], one["parents"]) for one in asked}
        )
        item = Item(str(entry.get("item_id", number)), str(prompt), questions)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"line {number} is no DPG prompt ({type(error).__name__}: {error}); give item_id, prompt and questions, "
            "each with id, text, category and parents"
        ) from None
    if not questions:
        raise ValueError(f"line {number}: '{prompt}' has nothing to ask")
    return evals.Item(item.prompt, as_data(item))


def _question(text: str, category: str, parents: Iterable[int]) -> Question:
    return Question(str(text), str(category), tuple(int(parent) for parent in parents))


def sentences(prompt: str) -> dict[int, Question]:
    """One independent question a sentence, for prompts that come without questions."""
    found = [part.strip() for part in re.split(r"(?<=[.!?])\s+", prompt.strip()) if part.strip()]
    return {
        number: Question(f'Does this picture show "{text}"?', SENTENCE, (ROOT,))
        for number, text in enumerate(found, 1)
    }


def as_data(item: Item) -> dict[str, Any]:
    """What `read_items` gives of an item, JSON-ready."""
    return {
        "item_id": item.item_id,
        "questions": {
            str(number): {"text": one.text, "category": one.category, "parents": list(one.parents)}
            for number, one in item.questions.items()
        },
    }


def from_data(prompt: str, data: Mapping[str, Any]) -> Item:
    """The item of which `as_data` was made."""
    questions = {
        int(number): _question(one["text"], one["category"], one["parents"])
        for number, one in data["questions"].items()
    }
    return Item(data["item_id"], prompt, questions)


def columns(
    items: Sequence[evals.Item],
    judgements: Mapping[str, Sequence[Judgement | None]],
    *,
    all_pictures: bool = False,
) -> dict[str, Column]:
    """Column "overall", the pictures' scores, and one for each category of level 1 that occurs, all answers pooled.

    As published, the graph plays no part in the categories, and they are of a prompt's last picture alone.

    Args:
        all_pictures: take all of a prompt's pictures for the categories.
    """
    overall: dict[str, list[float]] = {}
    found: dict[str, dict[str, list[float]]] = {}
    for item in items:
        seen = [judgement for judgement in judgements.get(item.prompt, ()) if judgement is not None]
        overall[item.prompt] = [judgement.score for judgement in seen]
        for judgement in seen if all_pictures else seen[-1:]:
            for number, question in item.data["questions"].items():
                name = question["category"].split("-")[0].strip().lower()
                answers = found.setdefault(name, {}).setdefault(item.prompt, [])
                answers.append(float(judgement.detail["answers"][number]))
    names = [name for name in CATEGORIES if name in found] + sorted(set(found) - set(CATEGORIES))
    return {"overall": Column(overall), **{name: Column(found[name], pooled=True) for name in names}}


def holding(
    dependency: Mapping[int, Sequence[int]], answers: Mapping[int, bool], *, any_order: bool = False
) -> set[int]:
    """Questions that count: answered yes, with parents that count; 0 is no parent.

    As published, questions are taken in the graph's order, and one that falls takes with it those that come later.

    Args:
        any_order: take them again until nothing falls, so that the order does not matter.

    Raises:
        ValueError: a question of the graph has no answer.
    """
    silent = sorted(set(dependency) - set(answers))
    if silent:
        raise ValueError(f"questions {silent} have no answer; answer each question of the graph")
    found = {number for number, answer in answers.items() if answer}
    while True:
        before = len(found)
        for number, parents in dependency.items():
            if any(parent != ROOT and parent not in found for parent in parents):
                found.discard(number)
        if not any_order or len(found) == before:
            return found


def score(
    dependency: Mapping[int, Sequence[int]], answers: Mapping[int, bool], *, any_order: bool = False
) -> float:
    """One picture's score, 0 to 1: the share of questions that count (`holding`).

    Raises:
        ValueError: there is no question, or one of the graph has no answer.
    """
    if not answers:
        raise ValueError("no question was answered; a score needs one")
    return len(holding(dependency, answers, any_order=any_order)) / len(answers)


def benchmark(scores: Iterable[Sequence[float]]) -> float:
    """Mean over prompts of the mean over each prompt's pictures.

    Raises:
        ValueError: there is no prompt, or one without a picture.
    """
    means = [sum(pictures) / len(pictures) if pictures else None for pictures in scores]
    known = [mean for mean in means if mean is not None]
    if not known or len(known) < len(means):
        raise ValueError(
            f"{len(known)} of {len(means)} prompts have a picture; each needs one, and there must be one"
        )
    return sum(known) / len(known)


def by_category(
    prompts: Iterable[tuple[Item, Sequence[Mapping[int, bool]]]],
    level: int = 2,
    *,
    all_pictures: bool = False,
) -> dict[str, float]:
    """Share of yes among answers, by category: "attribute - color" at level 2, "attribute" at level 1.

    As published, the graph plays no part here: a yes counts even where its parent is no.

    Args:
        prompts: each with the answers on each of its pictures.
        all_pictures: take all of a prompt's pictures and not its last alone.
    """
    found: dict[str, list[bool]] = {}
    for item, pictures in prompts:
        for answers in pictures if all_pictures else pictures[-1:]:
            for number, question in item.questions.items():
                name = question.category if level == 2 else question.category.split("-")[0].strip()
                found.setdefault(name, []).append(bool(answers[number]))
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}


def is_yes(answer: str) -> bool:
    """Whether a judge's words are a yes: that word exactly, as published."""
    return answer == "yes"
