"""T2I-CompBench: attributes bound to their objects, objects in their places, and prompts that ask for all of it.

Source: Huang et al. 2023, the authors' `BLIP_vqa.py`, `2D_spatial_eval.py`, `CLIP_similarity.py` and `3_in_1.py`, whose
formulas stand here as pure functions of what a judge saw:

    attribute binding (colour, shape, texture)   product over noun phrases of P(yes) / (P(yes) + P(no)) for "PHRASE?"
    2-D spatial                                  confidences and the boxes' places, 0 below one half
    non-spatial                                  CLIPScore, as a plain cosine
    complex                                      mean of those of the three that the prompt calls for

The prompts are the files of the authors' `examples/dataset`, read from a path: 300 a category for validation, 10
pictures each. `compbench_judge.py` says which models are asked.

Departures: the authors find objects and noun phrases by spaCy's English model, which no package index carries; words do
here (`phrases.py`), and a file of JSON lines brings a split of the user's own. For complex prompts the authors strike
the adjectives out of what CLIP reads; here it reads the prompt, unless the line says otherwise. Boxes without area
overlap nothing; the authors' code divides by zero there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from rankray.evals import Item, by_category, files_of, parts, read_lines, split_query
from rankray.evals.phrases import LOCALITIES, Spatial, noun_phrases, parse_spatial, sentence_spatial
from rankray.models.targets import Judgement
from rankray.stats import Column
from rankray.store import parse_json

Located = Sequence[float]
Kind = Literal["spatial", "action", "both"]

NEAR = ("next to", "on side of", "near")
IOU = 0.1
DISTANCE_PX = 150.0
LEAST = 0.5
PHRASES = 8

CATEGORIES = ("color", "shape", "texture", "spatial", "non_spatial", "complex")
ATTRIBUTES = ("color", "shape", "texture")
KINDS = ("spatial", "action", "both")


def read_items(path: str) -> list[Item]:
    """Prompts with what is asked of each, of one file, of several with commas between, or of a directory's.

    A file `color_val.txt` holds a colour prompt a line; so do the other categories' files, and of a directory those of
    the validation set are read. `complex_val_spatial.txt` and `complex_val_action.txt` beside a `complex_val.txt` say
    what its prompts call for: both of these parts where neither list holds one. Without them `guessed_kind` says it.
    A line of a .jsonl file has `prompt` and `category`, and may bring its own `phrases`, `spatial` ([object, locality,
    object]), `action` (the text for CLIP) and `kind`.

    Raises:
        ValueError: there is no such file, its name says no category, or a line cannot be used; it names the line.
    """
    found: list[Item] = []
    for file in _files(path):
        lines, name = read_lines(file), PurePosixPath(split_query(file)[0])
        reader = _own if name.suffix == ".jsonl" else _published(file)
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    found.append(reader(line.strip()))
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"{name.name}, line {number}: {error}") from None
    return found


def _files(path: str) -> Iterator[str]:
    for part in parts(path):
        inside = files_of(part, "*[-_ ]val.txt")
        if inside is None:
            yield part
            continue
        files = [file for file in inside if _category(file)]
        if not files:
            raise ValueError(f"{part} holds none of {', '.join(f'{name}_val.txt' for name in CATEGORIES)}")
        yield from files


def _category(file: str) -> str | None:
    """By the words of its name: of `color_val.txt`, `anything-colour.txt`, `Non-Spatial_val.txt`.

    None of names that say none, and of T2I-CompBench++'s `3d_spatial`.
    """
    stem = PurePosixPath(split_query(file)[0]).stem
    words = [word for word in re.split(r"[\W_]+", stem.lower()) if word]
    if words[-1:] in (["val"], ["train"]):
        words.pop()
    words = re.sub(r"\bnon ?spatial$", "non_spatial", " ".join(words)).replace("colour", "color").split()
    if not words or words[-1] not in CATEGORIES or words[-2:] == ["3d", "spatial"]:
        return None
    return words[-1]


def _published(file: str) -> Callable[[str], Item]:
    """What a line of the authors' file asks."""
    category = _category(file)
    lists = _lists(file) if category == "complex" else {}

    def item(prompt: str) -> Item:
        if category is None:
            raise ValueError(
                f"the file's name says no category; call it {', '.join(f'{one}_val.txt' for one in CATEGORIES)}"
            )
        kind = _kind(prompt, lists) if category == "complex" else None
        return Item(prompt, _data(prompt, category, kind, {}))

    return item


def _own(line: str) -> Item:
    entry = parse_json(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError("no 'prompt'")
    entry = {key: value for key, value in entry.items() if value is not None}  # as if they were left out
    if entry.get("category") not in CATEGORIES:
        raise ValueError(f"category {entry.get('category')!r} is none of {', '.join(CATEGORIES)}")
    kind = entry.get("kind", "both") if entry["category"] == "complex" else None
    if kind not in (None, *KINDS):
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    for key in ("phrases", "spatial"):
        own = entry.get(key, [])
        if not isinstance(own, list) or not all(isinstance(one, str) for one in own):
            raise ValueError(f"{key} {own!r} is no list of texts")
    if not isinstance(entry.get("action", ""), str):
        raise ValueError(f"action {entry['action']!r} is no text")
    prompt = entry["prompt"].strip()
    return Item(prompt, _data(prompt, entry["category"], kind, entry))


def _data(prompt: str, category: str, kind: str | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of a prompt, JSON-ready; what `own` brings is taken from there."""
    data: dict[str, Any] = {"category": category}
    if category in ATTRIBUTES or kind is not None:
        data["phrases"] = list(own.get("phrases", noun_phrases(prompt)))
    if category == "spatial" or kind in ("spatial", "both"):
        asked = own.get("spatial") or (parse_spatial(prompt) if kind is None else sentence_spatial(prompt))
        if isinstance(asked, Spatial):
            asked = (asked.first, asked.locality, asked.second)
        if asked is not None and (len(asked) != 3 or asked[1] not in LOCALITIES):
            raise ValueError(f"spatial {asked!r} is no [object, locality, object]")
        data["spatial"] = None if asked is None else list(asked)
    if category == "non_spatial" or kind in ("action", "both"):
        data["action"] = own.get("action", prompt)
    return data if kind is None else {**data, "kind": kind}


def _lists(file: str) -> dict[Kind, set[str]]:
    """The lists beside the file of complex prompts: their prompts up to the first full stop, as the authors compare."""
    own, query = split_query(file)
    directory, _, name = own.rpartition("/")
    name = PurePosixPath(name).stem
    beside: dict[Kind, str] = {"spatial": f"{name}_spatial.txt", "action": f"{name}_action.txt"}
    found = files_of(f"{directory}{query}" if directory else ".", "*.txt") or ()
    there = {PurePosixPath(split_query(one)[0]).name: one for one in found}
    return {
        kind: {line.strip().partition(".")[0].lower() for line in read_lines(there[one])}
        for kind, one in beside.items()
        if one in there
    }


def _kind(prompt: str, lists: Mapping[Kind, set[str]]) -> Kind:
    wanted = prompt.partition(".")[0].lower()
    for kind, prompts in lists.items():
        if wanted in prompts:
            return kind
    return "both" if lists else guessed_kind(prompt)


def guessed_kind(prompt: str) -> Kind:
    """What a complex prompt calls for, by its words, where the benchmark's lists are not at hand.

    "action" where no place is named, "spatial" where something is in its place and does nothing there ("was next to"),
    else "both". Of the published 300 that gives 213, 58 and 29, where the lists have 212, 58 and 30.
    """
    if (place := sentence_spatial(prompt)) is None:
        return "action"
    before = prompt.lower().partition(f" {place.locality} ")[0].split()
    return "spatial" if before[-1] in ("is", "are", "was", "were") else "both"


def columns(items: Sequence[Item], judgements: Mapping[str, Sequence[Judgement | None]]) -> dict[str, Column]:
    """A column for each category that occurs: the pictures' scores."""
    return by_category(items, judgements, CATEGORIES)


def binding_score(probabilities: Sequence[float]) -> float:
    """Product of P(yes) over a prompt's noun phrases, the first eight; 1 where it has none, as published.

    Raises:
        ValueError: one is outside 0 to 1.
    """
    for value in probabilities:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"P(yes) = {value} is outside 0 to 1")
    return math.prod(probabilities[:PHRASES])


def yes_probability(yes: float, no: float) -> float:
    """P(yes) among yes and no alone, of the first word of the answer, from both words' log-probabilities or logits."""
    return 1.0 / (1.0 + math.exp(min(no - yes, 700.0)))


def overlap(first: Located, second: Located) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1, ...); 0 where they have no area."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def position_score(locality: str | None, first: Located, second: Located) -> float:
    """How well the first box's place fits, 0 to 1, from the centres' offset in pixels and the overlap.

    Near is within 150 pixels on either axis, and falls with the larger distance beyond. A side must be the larger part
    of the offset; boxes that overlap by more than 0.1 are marked down to 0.1 / IoU. "on top of" (without "the") is no
    locality of the published rule and gives 0, as there.
    """
    dx, dy = ((second[n] + second[n + 2] - first[n] - first[n + 2]) / 2 for n in (0, 1))
    if locality in NEAR:
        if min(abs(dx), abs(dy)) < DISTANCE_PX:
            return 1.0
        return DISTANCE_PX / max(abs(dx), abs(dy))
    along, across = {
        "on the right of": (-dx, dy),
        "on the left of": (dx, dy),
        "on the bottom of": (-dy, dx),
        "on the top of": (dy, dx),
    }.get(locality or "", (0.0, 0.0))
    if along <= abs(across):
        return 0.0
    iou = overlap(first, second)
    return 1.0 if iou < IOU else IOU / iou


def spatial_score(locality: str | None, first: Located | None, second: Located | None) -> float:
    """A picture's 2-D spatial score: a quarter of each confidence and half of `position_score`; 0 below one half.

    Args:
        locality: one of `LOCALITIES`; any other, or None, is nowhere, as published.
        first, second: (x0, y0, x1, y1, confidence) of the objects, None where the detector did not see one.

    A picture that lacks an object cannot reach one half, so it scores 0.
    """
    total = sum(0.25 * box[4] for box in (first, second) if box is not None)
    if first is not None and second is not None:
        total += position_score(locality, first, second) / 2
    return total if total >= LEAST else 0.0


def complex_score(kind: Kind, attribute: float, spatial: float, action: float) -> float:
    """The published 3-in-1 mix: attributes with places, with actions, or with both, each part weighing the same.

    Args:
        kind: which of the benchmark's two lists holds the prompt: "spatial", "action"; "both" where neither does.
    """
    parts = {
        "spatial": (attribute, spatial),
        "action": (attribute, action),
        "both": (attribute, spatial, action),
    }[kind]
    return sum(parts) / len(parts)
