"""`README.md` as Hugging Face's hub shows it: what a model or a dataset was made of, what was measured, how it loads.

    OUTPUT/pipeline/README.md    of the merged pipeline
    OUTPUT/README.md             of a LoRA run's adapters, which lie there
    on the hub alone             of a dataset (`dataset_card`)

Everything is read from the run's summary, and from `gain.json` beside it where an alignment measured the run, so a card
can be written again. What is not known is said to be so or left
out: a licence that nobody stated, a gain that nobody measured. Settings are those that decide the result: no place of a
tracker or an output, as cards are published.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow.fs as pafs
from huggingface_hub import DatasetCardData, ModelCardData

from rankray import store
from rankray.config.rankdpo import SCORED
from rankray.data.hub import TAG, public
from rankray.data.votes import HUMAN
from rankray.models import generators, rewards
from rankray.models.targets import Spec, licence_of
from rankray.report.dataset import Figures, choose, drawn_with, ranked_by, standings
from rankray.report.pages import thumbnail
from rankray.words import compact, markdown, percent

SHOWN_PROMPTS = 6
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
PROMPT = "a red circle"
OBJECTIVES = {
    "rank_dpo": "RankDPO (https://arxiv.org/abs/2410.18013)",
    "dpo": "Diffusion-DPO (https://arxiv.org/abs/2311.12908)",
    "dpo_gain": "DPO weighted by gain (of https://arxiv.org/abs/2410.18013)",
    "plackett_luce": "list-wise DPO (Plackett-Luce)",
    "kto": "Diffusion-KTO",
    "mapo": "MaPO",
    "sft": "fine-tuning on the best candidate of each prompt",
    "weighted_sft": "fine-tuning on all candidates, weighted by a reward's scores,",
}
GAIN = "gain.json"
"""Beside a run's `run.json`: what the alignment that it is a round of measured of it."""
HUB_LICENCES = frozenset({"apache-2.0", "bsd-2-clause", "creativeml-openrail-m", "mit", "openrail++"})
"""Those of the tables' licences that the hub has a short name for; any other is "other" there, with its name."""
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def keep_gain(uri: str, info: Mapping[str, Any], gain: Mapping[str, str]) -> None:
    """Keeps what an alignment measured of the run at `uri`, for its cards: metric -> gain and interval in words."""
    fs, place = store.filesystem(uri)
    # Beside run.json, which is sealed; a training anew into the same place is another run, made at another time.
    store.write_json(f"{place}/{GAIN}", {"created": info.get("created"), "gain": dict(gain)}, fs)


def _gain(place: str, info: Mapping[str, Any], fs: pafs.FileSystem) -> dict[str, str]:
    """What `keep_gain` kept of this run."""
    if fs.get_file_info(f"{place}/{GAIN}").type != pafs.FileType.File:
        return {}
    kept = store.read_json(f"{place}/{GAIN}", fs)
    return dict(kept["gain"]) if kept.get("created") == info["created"] else {}


def write_cards(uri: str, info: Mapping[str, Any]) -> None:
    """Writes the cards of a finished run; a README.md of the user's own stays as it is.

    Args:
        uri: the run's output.
        info: what its `run.json` says or will say.

    Raises:
        DatasetError: what an alignment measured of it stands there, and is no JSON.
    """
    fs, place = store.filesystem(uri)
    for name, kind in _ours(place, info, fs):
        store.write_text(f"{place}/{name}", card(info, kind, _gain(place, info, fs)), fs)


def due_on_hub(info: Mapping[str, Any]) -> str:
    """What of a run others can load: its "adapters", or its "pipeline" where it has none, or has them of a pipeline
    that was tuned here, whose weights the hub has not."""
    alone = bool(info.get("lora_rank")) and "base" not in info["model"]
    return "adapters" if alone else "pipeline"


def public_card(uri: str, info: Mapping[str, Any]) -> str | None:
    """The card that goes to the hub with what is due there (`due_on_hub`), with places on this machine cut to their
    last name; None where a README.md of the user's own goes.

    Raises:
        DatasetError: as `write_cards`.
    """
    fs, place = store.filesystem(uri)
    due = due_on_hub(info)
    found = due in (kind for _, kind in _ours(place, info, fs))
    return card(public(dict(info)), due, _gain(place, info, fs)) if found else None


def _ours(place: str, info: Mapping[str, Any], fs: pafs.FileSystem) -> Iterator[tuple[str, str]]:
    """(name, kind) of a run's cards, but for those in whose place the user has a README.md."""
    if "data" not in info:  # of a version that knew no cards
        return
    for name, kind in (("pipeline/README.md", "pipeline"), ("README.md", "adapters")):
        if fs.get_file_info(f"{place}/{name}".rpartition("/")[0]).type == pafs.FileType.NotFound:
            continue  # its pipeline was moved away
        there = store.read_text(f"{place}/{name}", fs)
        if (not there or f"- {TAG}\n" in there) and (kind == "pipeline" or info["lora_rank"]):
            yield name, kind


def card(info: Mapping[str, Any], kind: str, gain: Mapping[str, str]) -> str:
    """One card's text: the hub's YAML, then Markdown. `kind` is "pipeline" or "adapters"."""
    objective, source = info["objective"]["name"], _base(info)["source"]
    what = "A pipeline tuned from" if kind == "pipeline" else "LoRA adapters for"
    what += " a pipeline tuned from" if _further(info, kind) else ""
    settings = (
        f"{key} = {json.dumps(value)}" for key, value in info["identity"].items() if value is not None
    )
    parts = [
        f"---\n{_head(info, kind).to_yaml()}\n---\n",
        f"# {what} {source}\n",
        f"Trained by {OBJECTIVES.get(objective, objective)} on pictures that {_judged(info)}, with rankray "
        f"{info['rankray_version']}, {info['created'][:10]}.\n",
        "## What it was made of\n",
        *_table(("", ""), _facts(info)),
        "## Rewards\n",
        *_table(("reward", "revision", "licence of its weights"), _rewards(info)),
        *_measured(info, gain),
        "## How to load it\n",
        f"```python\n{snippet(info, kind)}```\n",
        "## Settings\n",
        "```\n" + "\n".join(settings) + "\n```\n",
    ]
    return "\n".join(parts)


def _base(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Source, revision and licence of the model that was tuned first: of a later round, the first round's."""
    found: Mapping[str, Any] = info["model"].get("base") or info["model"]
    return found


def _further(info: Mapping[str, Any], kind: str) -> bool:
    """Whether these are adapters of a pipeline that was tuned itself: they are none of the model that it was tuned
    from."""
    return kind == "adapters" and "base" in info["model"]


def _head(info: Mapping[str, Any], kind: str) -> ModelCardData:
    base, licence = _base(info), _base(info)["licence"]
    from_hub = bool(_HUB.fullmatch(base["source"])) and not base["revision"].startswith("sha256:")
    named = from_hub and not _further(info, kind)
    paper = ["rankdpo"] if info["objective"]["name"] == "rank_dpo" else []
    return ModelCardData(
        base_model=base["source"] if named else None,
        base_model_relation=("adapter" if kind == "adapters" else "finetune") if named else None,
        library_name="diffusers" if kind == "pipeline" or _loads(info["model"]) else "peft",
        license=licence if licence in HUB_LICENCES else licence and "other",
        license_name=None if licence in HUB_LICENCES else licence,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", *paper, TAG, *(["lora"] if kind == "adapters" else [])],
    )


def _judged(info: Mapping[str, Any]) -> str:
    """Who judged what was learnt from: the objective's reward, or those of `[labels]`, or the datasets' own."""
    identity, objective = info["identity"], info["objective"]
    mixed = any(key.startswith("mix.") for key in identity)
    if identity.get("labels.aggregation") == "random" and not mixed:
        return "chance has ranked"
    asked = None if mixed else identity.get("labels.rewards")
    names = {item["name"] for item in info["data"]["rewards"]}
    if objective["name"] in SCORED:
        names = {objective["reward"]}
    elif asked:
        names = set(asked)
    if names == {HUMAN}:
        return "people have judged"
    return "rewards and people have judged" if HUMAN in names else "rewards have ranked"


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A Markdown table, and an empty line behind it."""
    return [*markdown(header, (map(str, row) for row in rows)), ""]


def _facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, data, objective = info["model"], info["data"], info["objective"]
    base = _base(info)
    sets = info.get("datasets") or [{"dataset": info["dataset"]}]
    dataset = " + ".join(
        f"{one['weight']:g} × {one['dataset']}" if len(sets) > 1 else one["dataset"] for one in sets
    )
    options = ", ".join(f"{key} = {value!r}" for key, value in objective["options"].items())
    trained = (
        f"LoRA, rank {info['lora_rank']}, alpha {info['lora_alpha']}" if info["lora_rank"] else "weights"
    )
    # of imported pictures nobody knows
    drawn = {item["name"]: item.get("samples") for item in data["generators"]}
    generators = (f"{name} ({count} a prompt)" if count else name for name, count in drawn.items())
    return [
        ("base model", f"{base['source']} ({model['pipeline']})"),
        ("revision", base["revision"]),
        ("licence of the base model", base["licence"] or "not stated"),
        *([("went on from", f"{model['source']}, {model['revision']}")] if "base" in model else []),
        ("dataset", f"{dataset}: {data['rows']:,} prompts"),
        ("pictures by", ", ".join(generators)),
        ("objective", f"{objective['name']}, beta {compact(objective['beta'])}{options and ', ' + options}"),
        ("trained", f"{trained}; {info['parameters']['trained']:,} parameters"),
        ("steps", f"{info['steps']:,} of {info['batch_size']:,} prompts"),
    ]


def _rewards(info: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rewards = info["data"]["rewards"]
    return [(item["name"], item["revision"], item["licence"] or "not stated") for item in rewards]


def _measured(info: Mapping[str, Any], gain: Mapping[str, str]) -> list[str]:
    """Validation and gain, each where there is one."""
    found: list[str] = []
    if validation := info.get("validation"):
        exported, last = validation["exported"], validation["last"]
        rows = [
            (key.replace("_", " "), _figure(key, exported[key]), _figure(key, last[key])) for key in exported
        ]
        found += [
            f"## On {validation['prompts']:,} prompts left out of training\n",
            *_table(("", "this model", "the last step"), rows),
            f"Exported: {validation['decision']}.\n",
            *(f"- {kind}: {text}\n" for kind, text in validation["warnings"].items()),
        ]
    if gain:
        found += ["## Before and after, on held-out prompts\n", *_table(("", "gain"), gain.items())]
    return found


def _figure(name: str, value: float | None) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return percent(value) if name.endswith(("accuracy", "accuracy_error", "rise")) else compact(value)


def _loads(model: Mapping[str, Any]) -> bool:
    """Whether diffusers loads adapters into this pipeline; peft does into all."""
    return bool(model["lora_form"] != "peft")


def snippet(info: Mapping[str, Any], kind: str) -> str:
    """Python that loads the model and draws a picture, run where the card lies."""
    model, load = info["model"], dict(info["model"]["load"])
    here = 'place = "."  # where this file lies, or its repository on the hub'
    name = model["pipeline"]
    draw = f'image = pipe("{PROMPT}"{_more(model["call"])}).images[0]'
    if kind == "pipeline":
        load.pop("variant", None)
        opened = f"pipe = {name}.from_pretrained(place{_more(load)})"
        return "\n".join([f"from diffusers import {name}", "", here, opened, draw, ""])
    base, before = repr(model["source"]), []
    if model["source"].startswith("shapes:"):
        base = f"pipeline_dir({model['source'].removeprefix('shapes:')!r})"
        before = ["from rankray.shapes import pipeline_dir"]
    if _COMMIT.fullmatch(model["revision"]):
        load["revision"] = model["revision"]
    adapt = "pipe.load_lora_weights(place)"
    if not _loads(model):
        before.append("from peft import PeftModel")
        adapt = f"pipe.{model['denoiser']} = PeftModel.from_pretrained(pipe.{model['denoiser']}, place)"
    opened = f"pipe = {name}.from_pretrained({base}{_more(load)})"
    return "\n".join([f"from diffusers import {name}", *before, "", here, opened, adapt, draw, ""])


def _more(arguments: Mapping[str, Any]) -> str:
    """Further keyword arguments, each behind a comma."""
    return "".join(f", {key}={value!r}" for key, value in arguments.items())


def dataset_card(dataset: store.RankedDataset, repository: str) -> tuple[str, dict[str, bytes]]:
    """The card of a ranked dataset, and the pictures that it shows, by their places beside it.

    Reads the whole dataset without its pictures, and those of `SHOWN_PROMPTS` prompts.
    """
    info = dataset.info
    drawn_by, judged_by = ([item["name"] for item in info[kind]] for kind in ("generators", "rewards"))
    how = info.get("ranking", {})
    figures = Figures(drawn_by, judged_by, how)
    for row in dataset.rows():
        figures.add(row)
    chosen = choose(figures.unanimity, (), SHOWN_PROMPTS)
    table, pictures = _shown(dataset, chosen)
    head = DatasetCardData(
        task_categories=["text-to-image"],
        tags=["preference", "rankdpo", TAG],
        size_categories=[_size(info["rows"])],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        pretty_name=repository.partition("/")[2],
    )
    won = ((row["name"], _share(row["phi"]), _share(row["firsts"])) for row in standings(drawn_by, figures))
    parts = [
        f"---\n{head.to_yaml()}\n---\n",
        f"# {repository.partition('/')[2]}\n",
        f"{info['rows']:,} prompts with {info['candidates']:,} candidates, judged by {len(judged_by)} "
        f"reward{'s' * (len(judged_by) != 1)} and ranked by {ranked_by(how, judged_by).translate(_PLAIN)} (φ); "
        f"{info['failures']['total']:,} failures. Made with rankray {info['rankray_version']}, {info['created'][:10]}, "
        "for RankDPO (https://arxiv.org/abs/2410.18013).\n",
        *table,
        "## Generators\n",
        *_table(("generator", "revision", "licence of its weights", "drawn with", "a prompt"), _drew(info)),
        *_table(("generator", "mean φ", "first"), won),
        "## Rewards\n",
        *_table(("reward", "revision", "licence of its weights"), _stated(info, "rewards", rewards.REWARDS)),
        *(_agreed(judged_by, figures) if len(judged_by) > 1 else []),
        "A generator's licence may bind what is done with its pictures; of their own they have none here.\n",
        "## How to load it\n",
        f'```python\nimport datasets\n\nrows = datasets.load_dataset("{repository}", split="train")\n'
        'best = min(rows[0]["candidates"], key=lambda candidate: candidate["rank"] or 99)\nbest["image"]\n```\n',
        f"or as rankray has it: `rankray import hub:{repository} --output DIR`. A row is `prompt_id`, `prompt` and "
        "`candidates`, a candidate `generator`, `seed`, `image`, `scores` (in the order of the rewards above), "
        "`win_probability`, `rank` (1 is best, 0 left out) and `error`.\n",
    ]
    return "\n".join(parts), pictures


def _shown(dataset: store.RankedDataset, chosen: Iterable[str]) -> tuple[list[str], dict[str, bytes]]:
    """A table of some prompts' pictures, best first, and the pictures."""
    wanted, rows, pictures = set(chosen), [], dict[str, bytes]()
    for row in dataset.rows(images=True) if wanted else ():
        if row["prompt_id"] not in wanted:
            continue
        wanted.remove(row["prompt_id"])
        cells: list[str] = []
        for candidate in sorted(row["candidates"], key=lambda c: int(c["rank"] or 128)):
            if candidate["image"] is None:
                continue
            kind, data = thumbnail(store.image_bytes(candidate["image"]))
            name = f"pictures/{row['prompt_id'][:12]}-{len(cells)}.{kind}"
            pictures[name] = data
            cells.append(f"![{candidate['generator']}]({name})")
        rows.append((" ".join(row["prompt"].split())[:200].translate(_PLAIN), " ".join(cells)))
        if not wanted:
            break
    return [
        "## Some prompts, the best picture first\n",
        *_table(("prompt", "pictures"), rows),
    ] if rows else [], pictures


_PLAIN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]<>()#!"})
"""Prompts and names are strangers' text, and Markdown would take them for its own."""


def _size(rows: int) -> str:
    """The hub's word for how many rows there are."""
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M"]
    return names[sum(rows >= size for size in SIZES)]


def _agreed(names: list[str], figures: Figures) -> list[str]:
    rows = zip(names, figures.agreement.tolist(), strict=True)
    table = _table(("", *names), ((name, *map(_share, row)) for name, row in rows))
    return ["Share of candidate pairs that two of them order alike; 50 % is chance.\n", *table]


def _share(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else percent(value)


def _drew(info: Mapping[str, Any]) -> list[tuple[str, ...]]:
    samples = [str(item["samples"] or "as they come") for item in info["generators"]]
    told = _stated(info, "generators", generators.GENERATORS)
    how = [drawn_with(item) or "not recorded" for item in info["generators"]]
    return [(*row, *rest) for row, *rest in zip(told, how, samples, strict=True)]


def _stated(info: Mapping[str, Any], kind: str, table: Mapping[str, Spec]) -> list[tuple[str, str, str]]:
    """Name, revision and licence of each of a dataset's generators or rewards."""
    found = [(item, licence_of(item, kind, info["identity"], table)) for item in info[kind]]
    return [(item["name"], item["revision"], licence or "not stated") for item, licence in found]
