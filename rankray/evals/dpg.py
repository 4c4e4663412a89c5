"""DPG-Bench: what share of a long prompt's propositions does a picture show?

Source: Hu et al. 2024 (ELLA), `compute_dpg_bench.py` of the authors' repository. A prompt comes with yes-or-no
questions in a dependency graph ("is there a chair?" before "is the chair red?"). A question counts where its answer is
yes and all that it depends on counts; a picture's score is the share of its questions that count, a prompt's the mean
over its pictures, a benchmark's the mean over prompts. The prompts and questions are those of `dpg_bench.csv`, read
from a path: 1,065 prompts x 4 pictures, about 13 questions each. `dpg_judge.py` says which model is asked.

The authors' code has three quirks, without which figures do not compare with published ones. Each is the default here
and can be mended: its reader drops the table's first line, and with it the first prompt, whose other questions depend
on the one that is gone: the code fails on it, says so and goes on (`keep_first`); children listed before their parents
escape their grandparents' fall (`any_order`); and categories are of the bare answers on a prompt's last picture alone
(`all_pictures`). Departures: a question that was never asked counts as no, where the authors' code fails on the
picture; prompts that come without questions are asked sentence by sentence, which is no published figure, and the
column "sentence" says so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rankray.data.prompts import csv_rows, require_fields
from rankray.evals import Item, files_of, read_lines, split_query
from rankray.models.targets import Judgement
from rankray.stats import Column
from rankray.store import parse_json

_LOG = logging.getLogger(__name__)
ROOT = 0
CATEGORIES = ("global", "entity", "attribute", "relation", "other")
SENTENCE = "sentence"
"""Category of what is asked where a prompt comes without questions."""
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


def read(lines: Iterable[str], *, keep_first: bool = False) -> list[Item]:
    """Items of the published table (CSV, a line a question), in its order, as `read_items` gives them.

    Args:
        keep_first: keep the first line of data, which the authors' reader drops. Without it, the first prompt is left
            out where others of its questions depend on that one.

    Raises:
        ValueError: a column is missing, a line is short, long or without a prompt, a quote is left open, or a number
            is none; it names the line.
    """
    table = csv_rows(lines)
    _, header = next(table, (1, list[str]()))
    gone = [name for name in COLUMNS if name not in header]
    if gone:
        raise ValueError(f"columns {', '.join(gone)} are missing; give DPG-Bench's table of questions")
    prompts: dict[str, str] = {}
    questions: dict[str, dict[str, Any]] = {}
    first: tuple[str, str] | None = None
    for at, fields in table:
        if not fields:
            continue
        require_fields(at, fields, header)
        line = dict(zip(header, fields, strict=False))
        number, question = _row(line, f"line {at}")
        item = line["item_id"]
        if not prompts.setdefault(item, line["text"]).strip():
            raise ValueError(f"line {at}: text is blank; the first line of an item has its prompt")
        mine = questions.setdefault(item, {})
        if number in mine:  # the authors' code takes the last too
            _LOG.warning("line %d: question %s of item %r stands twice; the last counts", at, number, item)
        mine[number] = question
        if first is None:
            first = item, number
    if first is not None and not keep_first:
        item, number = first
        del questions[item][number]
        orphans = any(int(number) in question["parents"] for question in questions[item].values())
        if orphans or not questions[item]:
            del questions[item]
    return [Item(prompts[item], {"item_id": item, "questions": mine}) for item, mine in questions.items()]


def _row(found: Mapping[str, str], where: str) -> tuple[str, dict[str, Any]]:
    """(id, question) of a line of the table."""
    short = [name for name in COLUMNS if name not in found]
    if short:
        raise ValueError(f"{where} has no {', '.join(short)}; each line has all of {', '.join(COLUMNS)}")
    try:
        number = float(found["proposition_id"])
        if not number.is_integer():
            raise ValueError(number)
        parents = [int(word) for word in found["dependency"].split(",") if word.strip()]
    except ValueError:
        raise ValueError(
            f"{where}: proposition_id {found['proposition_id']!r} or dependency {found['dependency']!r} is no number"
        ) from None
    category = found["tuple"].split("(")[0].strip()
    return str(int(number)), _question(found["question_natural_language"], category, parents)


def _question(text: Any, category: Any, parents: Iterable[Any]) -> dict[str, Any]:
    if isinstance(parents, str):
        raise ValueError(f"parents {parents!r} is no list of ids")
    for value in (text, category):
        if not isinstance(value, str):  # null, as text, would be asked about
            raise ValueError(f"{value!r} is no text")
    return {"text": text, "category": category, "parents": [int(parent) for parent in parents]}


def read_items(path: str, *, keep_first: bool = False) -> list[Item]:
    """Prompts with their questions as data: {"item_id": ..., "questions": {"1": {"text", "category", "parents"}}}.

    A category is what stands before the proposition's brackets ("entity - whole", "attribute - color"), parents are ids
    of the questions that one depends on, [0] or [] for none.

    Args:
        path: the published table (.csv), a directory that holds one, or JSON lines of `item_id`, `prompt` and
            `questions`, a list of {"id", "text", "category", "parents"}; lines without questions are asked sentence by
            sentence.
        keep_first: of a table, as `read` has it.

    Raises:
        ValueError: there is no such file, or it is of another form; it names the line.
    """
    tables = files_of(path, "*.csv")
    if tables is not None and len(tables) != 1:
        raise ValueError(f"{path} holds {len(tables)} .csv files; name DPG-Bench's table of questions")
    (place,) = tables or [path]
    lines = read_lines(place)
    if not split_query(place)[0].endswith(".jsonl"):
        return read(lines, keep_first=keep_first)
    return [_item(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _item(number: int, line: str) -> Item:
    try:
        entry = parse_json(line)
        prompt, asked = entry["prompt"], entry.get("questions")
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {prompt!r} is no text")
        if asked is None:
            questions = sentences(prompt)
        else:
            questions = {
                str(int(one["id"])): _question(one["text"], one["category"], one["parents"]) for one in asked
            }
            if len(questions) < len(asked):
                raise ValueError("an id stands twice")
        own = entry.get("item_id")
        item = Item(prompt, {"item_id": str(number if own is None else own), "questions": questions})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"line {number} is no DPG prompt ({type(error).__name__}: {error}); give item_id, prompt and questions, "
            "each with id, text, category and parents"
        ) from None
    if not questions:
        raise ValueError(f"line {number}: '{prompt}' has nothing to ask")
    return item


def sentences(prompt: str) -> dict[str, dict[str, Any]]:
    """One independent question a sentence, for prompts that come without questions."""
    found = [part.strip() for part in re.split(r"(?<=[.!?])\s+", prompt.strip()) if part.strip()]
    return {
        str(number): _question(f'Does this picture show "{text}"?', SENTENCE, [ROOT])
        for number, text in enumerate(found, 1)
    }


def dependency(data: Mapping[str, Any]) -> dict[int, list[int]]:
    """Parents of each question of an item's data, as `score` takes them."""
    return {int(number): question["parents"] for number, question in data["questions"].items()}


def columns(
    items: Sequence[Item],
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
    """Questions that count: answered yes, with parents that count; 0 is no parent, and no answer is no yes.

    As published, questions are taken in the graph's order, and one that falls takes with it those that come later.

    Args:
        any_order: take them again until nothing falls, so that the order does not matter.
    """
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
    """One picture's score, 0 to 1: the share of questions, asked or answered, that count (`holding`).

    Raises:
        ValueError: there is no question.
    """
    asked = {*dependency, *answers}
    if not asked:
        raise ValueError("there is no question; a score needs one")
    return len(holding(dependency, answers, any_order=any_order)) / len(asked)
