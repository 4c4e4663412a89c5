"""The EVALS table: the benchmarks of the paper's section 4.1 as data, and what they have in common.

A benchmark is two files: its published rules and its readers, pure (`geneval.py`, `dpg.py`, `compbench.py`), and the
judge that sees pictures (`..._judge.py`). Rules are functions of what a judge saw (boxes, colours, answers,
probabilities), so that a verdict can be worked out by hand and tried again on stored sightings in microseconds. No
benchmark's prompts are kept here. Importing this module loads neither torch nor transformers: the driver does it.

A judge is a stage like a reward: constructed `Class(spec=..., items={prompt: data}, device=...)`, then
`judge(images, prompts) -> list[Judgement]`, batched, the same whatever stands beside a picture.
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.fs as pafs

from rankray import store
from rankray.config import ConfigError, EvalChoice
from rankray.data.prompts import open_text
from rankray.models.targets import (
    Judgement,
    Spec,
    Target,
    Weights,
    configured,
    require_known,
    split_name,
    target_of,
)
from rankray.models.weights import Pinned
from rankray.stats import Column

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """What a benchmark asks of one prompt.

    Attributes:
        prompt: stripped of surrounding white space, as all prompts are.
        data: JSON-ready: GenEval's metadata, DPG-Bench's questions, T2I-CompBench's category and phrases.

    Raises:
        ValueError: the prompt is blank.
    """

    prompt: str
    data: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", self.prompt.strip())
        if not self.prompt:
            raise ValueError("the prompt is blank; give one, or take the line out")


@dataclass(frozen=True, kw_only=True)
class EvalSpec(Spec):
    """One benchmark; `target` is its judge, whose weights are its parts'.

    Attributes:
        read: "module:function": (path) -> list[Item]; raises ValueError that names the line.
        columns: "module:function": (items, judgements by prompt, None for a picture that failed) -> dict[str, Column].
        overall: the columns whose plain mean is the headline figure.
        several: its path may name several files and directories, with commas between (`parts`).
        samples: pictures a prompt, as published.
        models: the judge's parts, each a hub repository, a directory or a URI.
        revisions: branch, tag or commit of each part; "main" where it names none.
        departures: in which way its figures are not the published ones': by part, what is true as long as the part is
            the row's; by any other word, what is of the rules.
        gpu_memory_gb: what one actor needs with its weights and one batch, as `benchmarks/memory_plan` counts it.
        options: further settings of the judge, its readers and columns; a configuration may change these and no others.
    """

    batch_size: int = 16
    read: str
    columns: str
    overall: tuple[str, ...]
    samples: int
    models: Mapping[str, str]
    revisions: Mapping[str, str] = field(default_factory=dict)
    departures: Mapping[str, str] = field(default_factory=dict)
    several: bool = False
    gpu_memory_gb: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, choice: EvalChoice) -> EvalSpec:
        """The row with the choice's options, parts and their revisions."""
        whose = f"benchmark '{choice.label}'"
        require_known(whose, "option", choice.options, self.options)
        require_known(whose, "part", choice.models, self.models)
        require_known(whose, "part", choice.revisions, self.models)
        # A part in another place is another part: the row's revision is not its.
        revisions = {part: name for part, name in self.revisions.items() if part not in choice.models}
        return replace(
            self,
            models={**self.models, **choice.models},
            revisions={**revisions, **choice.revisions},
            options={**self.options, **choice.options},
        )

    def settings(self) -> dict[str, Any]:
        """Its options."""
        return super().settings() | dict(self.options)

    def weights(self) -> dict[str, Weights]:
        """The judge's parts."""
        return {part: Weights(name, self.revisions.get(part, "main")) for part, name in self.models.items()}

    def pinned(self, found: Mapping[str, Pinned]) -> EvalSpec:
        """The row with commits in it."""
        models = {part: one.source for part, one in found.items()}
        return replace(self, models=models, revisions={part: one.revision for part, one in found.items()})

    def recorded(self, found: Mapping[str, Pinned]) -> str:
        """Every part by its name: "clip=<commit> detector=sha256:..."."""
        return " ".join(f"{part}={found[part].recorded}" for part in sorted(found))


_CLIP_VOCABULARY = 49408
_BERT_VOCABULARY = 30522

EVALS: dict[str, EvalSpec] = {
    "geneval": EvalSpec(
        target="rankray.evals.geneval_judge:GenEvalJudge",
        read="rankray.evals.geneval:read_items",
        columns="rankray.evals.geneval:columns",
        overall=("single_object", "two_object", "counting", "colors", "position", "color_attr"),
        samples=4,
        models={
            "detector": "facebook/mask2former-swin-small-coco-instance",
            "clip": "openai/clip-vit-large-patch14",
        },
        departures={"detector": "Mask2Former in transformers' port of the authors' checkpoint family"},
        gpu_memory_gb=14.0,  # every query of the detector kept, at full size on the fake device; real pictures keep few
        options={
            "confidence": 0.3,
            "counting_confidence": 0.9,
            "max_objects": 16,
            "max_overlap": 1.0,
            "position": 0.1,
            "background": "#999",
            "crop": True,
            "size": {"shortest_edge": 800, "longest_edge": 1333},
            "vocabulary": _CLIP_VOCABULARY,
        },
    ),
    "dpg": EvalSpec(
        target="rankray.evals.dpg_judge:DpgJudge",
        read="rankray.evals.dpg:read_items",
        columns="rankray.evals.dpg:columns",
        overall=("overall",),
        samples=4,
        models={"vqa": "Salesforce/blip-vqa-base"},
        departures={"vqa": "answers by BLIP-VQA in place of mPLUG-large"},
        gpu_memory_gb=3.0,
        options={
            "vqa": "blip",
            "ask": "{} Answer yes or no.",
            "any_order": False,
            "keep_first": False,
            "all_pictures": False,
            "vocabulary": _BERT_VOCABULARY,
        },
    ),
    "compbench": EvalSpec(
        target="rankray.evals.compbench_judge:CompBenchJudge",
        read="rankray.evals.compbench:read_items",
        several=True,
        columns="rankray.evals.compbench:columns",
        overall=("color", "shape", "texture", "spatial", "non_spatial", "complex"),
        samples=10,
        models={
            "vqa": "Salesforce/blip-vqa-base",
            "detector": "google/owlv2-base-patch16-ensemble",
            "clip": "openai/clip-vit-base-patch32",
        },
        revisions={"clip": "refs/pr/15"},  # the hub's own conversion: `main` has pickles alone
        departures={
            "detector": "objects found by OWLv2 in place of UniDet",
            "phrases": "noun phrases split by words in place of spaCy",
            "vqa": "BLIP-VQA's pictures have 384 pixels a side in place of 480",
            "adjectives": "adjectives kept in what CLIP reads of complex prompts",
        },
        gpu_memory_gb=6.0,
        options={
            "least_confidence": 0.1,
            "vocabulary": _BERT_VOCABULARY,
            "clip_vocabulary": _CLIP_VOCABULARY,
        },
    ),
    "shapes": EvalSpec(
        target="rankray.evals.shapes:ShapesJudge",
        read="rankray.evals.shapes:read_items",
        columns="rankray.evals.shapes:columns",
        overall=("single_object", "two_objects", "counting", "colours", "position", "colour_attribution"),
        samples=4,
        models={},
        num_gpus=0.0,
        num_cpus=0.05,
    ),
}


def parts(path: str) -> list[str]:
    """The files and directories that the path of a benchmark which takes `several` names."""
    return [part.strip() for part in path.split(",")]


def split_query(path: str) -> tuple[str, str]:
    """(the place that a path or a URI names, what a URI says behind it: "?region=..." or nothing)."""
    place, mark, query = path.partition("?") if "://" in path else (path, "", "")
    return place, f"{mark}{query}"


def files_of(path: str, pattern: str) -> list[str] | None:
    """The files of a directory, or of a URI that is one, whose names match, by name; None where it is none.

    Raises:
        ValueError: the place cannot be asked.
    """
    try:
        fs, place = store.filesystem(path)
        if fs.get_file_info(place).type != pafs.FileType.Directory:
            return None
        found = fs.get_file_info(pafs.FileSelector(place))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    names = sorted(info.base_name for info in found if info.type == pafs.FileType.File)
    own, query = split_query(path)
    return [f"{own.rstrip('/')}/{name}{query}" for name in names if fnmatch.fnmatch(name, pattern)]


def read_lines(path: str) -> list[str]:
    """Lines of a metadata file, at a path or a URI.

    Raises:
        ValueError: there is no such file, or it is no UTF-8, nor UTF-16 or UTF-32 that can be told.
    """
    try:
        fs, place = store.filesystem(path)
        with fs.open_input_file(place) as stream:
            # Not splitlines(): a JSON line or a quoted field may hold any of Unicode's other line ends.
            lines = list(open_text(stream))
        "".join(lines).encode("utf-8")  # what could not be decoded cannot be encoded either
        return lines
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from None


def items_and_repeats(spec: EvalSpec, path: str) -> tuple[list[Item], int]:
    """What the row's `read` finds at `path`, each prompt once; how many more stand there of prompts that stood before.

    Raises:
        ValueError: there is no such file, or it is of another form; it names the line.
    """
    read, options = _function(spec.read, spec)
    found: dict[str, Item] = {}
    items = read(path, **options)
    for item in items:
        if found.setdefault(item.prompt, item).data != item.data:
            _LOG.warning("'%s' stands twice in %s; what stands first is asked", item.prompt, path)
    return list(found.values()), len(items) - len(found)


def by_category(
    items: Sequence[Item],
    judgements: Mapping[str, Sequence[Judgement | None]],
    names: Sequence[str],
    key: str = "category",
) -> dict[str, Column]:
    """A column for each of `names` that occurs: the scores of its prompts' pictures; none for one that failed.

    Args:
        key: where an item's data has its category.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for item in items:
        scores = [judgement.score for judgement in judgements.get(item.prompt, ()) if judgement is not None]
        found.setdefault(item.data[key], {})[item.prompt] = scores
    return {name: Column(found[name]) for name in names if name in found}


def columns_of(
    spec: EvalSpec, items: Sequence[Item], judgements: Mapping[str, Sequence[Judgement | None]]
) -> dict[str, Column]:
    """The row's `columns`, with those of the row's options that it takes; None is a picture that failed."""
    columns, options = _function(spec.columns, spec)
    found: dict[str, Column] = columns(items, judgements, **options)
    return found


def _function(name: str, spec: EvalSpec) -> tuple[Callable[..., Any], dict[str, Any]]:
    module, attribute = split_name(name)
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    takes = inspect.signature(found).parameters
    return found, {key: value for key, value in spec.options.items() if key in takes}


def spec_of(choice: EvalChoice) -> EvalSpec:
    """The row that a choice names, with the choice's own settings; revisions are as they were written.

    Raises:
        ConfigError: unknown benchmark, part or option (nearest match given).
    """
    return configured(choice, EVALS, "benchmark")


def resolve(choice: EvalChoice, items: Sequence[Item]) -> Target:
    """What a pool has to run for one benchmark, with the revision of every part of its judge.

    Raises:
        ConfigError: unknown benchmark, part or option, weights that cannot be found, or two items of one prompt
            that ask different things.
    """
    spec = spec_of(choice)
    ask = spec.options.get("ask")
    if isinstance(ask, str) and (ask.count("{}") != 1 or set("{}") & set(ask.replace("{}", ""))):
        raise ConfigError(
            f"benchmark '{choice.label}': option ask = {ask!r}; the question takes the place of one {{}} in it, as in "
            "'{} Answer yes or no.'"
        )
    data: dict[str, Any] = {}
    for item in items:
        if data.setdefault(item.prompt, item.data) != item.data:
            raise ConfigError(f"benchmark '{choice.label}': '{item.prompt}' stands twice and asks two things")
    target = target_of(spec, "benchmark", choice.label)
    return replace(target, kwargs={**target.kwargs, "items": data})
