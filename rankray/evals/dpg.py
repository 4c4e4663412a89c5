"""DPG-Bench: what share of a long prompt's propositions does a picture show?

Source: Hu et al. 2024 (ELLA), `compute_dpg_bench.py` of the authors' repository. A prompt comes with yes-or-no
questions in a dependency graph ("is there a chair?" before "is the chair red?"). A question counts where its answer is
yes and all that it depends on counts; a picture's score is the share of its questions that count, a prompt's the mean
over its pictures, a benchmark's the mean over prompts. 1,065 prompts x 4 pictures, about 13 questions each.

The authors' code has three quirks, without which figures do not compare with published ones. Each is the default here
and can be mended: its reader drops the table's first line (`keep_first`), children listed before their parents escape
their grandparents' fall (`any_order`), and categories are of the bare answers on a prompt's last picture alone
(`all_pictures`). Departure: a parent that was never asked counts as no; the authors' code ends with a key error.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ROOT = 0
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
