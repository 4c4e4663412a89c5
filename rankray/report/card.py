"""`README.md` of a trained model, as Hugging Face's hub shows it: what it was made of, what was measured, how it loads.

    OUTPUT/pipeline/README.md    of the merged pipeline
    OUTPUT/README.md             of a LoRA run's adapters, which lie there

Everything is read from the run's summary, so a card can be written again. What is not known is said to be so or left
out: a licence that nobody stated, a gain that nobody measured. Settings are those that decide the result: no place of a
tracker or an output, as cards are published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow.fs as pafs
from huggingface_hub import ModelCardData

from rankray import store
from rankray.words import compact, percent

TAG = "rankray"
PROMPT = "a red circle"
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def write_cards(uri: str, info: Mapping[str, Any], gain: Mapping[str, str] | None = None) -> None:
    """Writes the cards of a finished run; a README.md of the user's own stays as it is.

    Args:
        uri: the run's output.
        info: what its `run.json` says or will say.
        gain: metric -> its gain and interval in words, where before and after were measured.
    """
    if "data" not in info:  # of a version that knew no cards
        return
    fs, place = store.filesystem(uri)
    for name, kind in (("pipeline/README.md", "pipeline"), ("README.md", "adapters")):
        there = _text(fs, f"{place}/{name}")
        ours = not there or f"- {TAG}\n" in there
        if ours and (kind == "pipeline" or info["lora_rank"]):
            store.write_text(f"{place}/{name}", card(info, kind, gain or {}), fs)


def _text(fs: pafs.FileSystem, path: str) -> str:
    if fs.get_file_info(path).type != pafs.FileType.File:
        return ""
    with fs.open_input_stream(path) as stream:
        return bytes(stream.read()).decode("utf-8", "replace")


def card(info: Mapping[str, Any], kind: str, gain: Mapping[str, str]) -> str:
    """One card's text: the hub's YAML, then Markdown. `kind` is "pipeline" or "adapters"."""
    model = info["model"]
    from_hub = bool(_HUB.fullmatch(model["source"])) and not model["revision"].startswith("sha256:")
    settings = (
        f"{key} = {json.dumps(value)}" for key, value in info["identity"].items() if value is not None
    )
    head = ModelCardData(
        base_model=model["source"] if from_hub else None,
        base_model_relation=("adapter" if kind == "adapters" else "finetune") if from_hub else None,
        library_name="diffusers" if kind == "pipeline" or _loads(model) else "peft",
        license=model["licence"],
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", "rankdpo", TAG, *(["lora"] if kind == "adapters" else [])],
    )
    what = "LoRA adapters for" if kind == "adapters" else "A pipeline tuned from"
    parts = [
        f"---\n{head.to_yaml()}\n---\n",
        f"# {what} {model['source']}\n",
        f"Trained by RankDPO (https://arxiv.org/abs/2410.18013) on pictures that rewards have ranked, with rankray "
        f"{info['rankray_version']}, {info['created'][:10]}.\n",
        "## What it was made of\n",
        *_table(("", ""), _facts(info)),
        "## Rewards\n",
        *_table(("reward", "revision", "licence of its published weights"), _rewards(info)),
        *_measured(info, gain),
        "## How to load it\n",
        f"```python\n{snippet(info, kind)}```\n",
        "## Settings\n",
        "```\n" + "\n".join(settings) + "\n```\n",
    ]
    return "\n".join(parts)


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A Markdown table, and an empty line behind it."""
    cells = [list(header), *(list(row) for row in rows)]
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells]
    return [lines[0], "|---" * len(cells[0]) + "|", *lines[1:], ""]


def _facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, data, objective = info["model"], info["data"], info["objective"]
    options = ", ".join(f"{key} = {value!r}" for key, value in objective["options"].items())
    trained = (
        f"LoRA, rank {info['lora_rank']}, alpha {info['lora_alpha']}" if info["lora_rank"] else "weights"
    )
    drawn = {
        item["name"]: item.get("samples") for item in data["generators"]
    }  # of imported pictures nobody knows
    generators = (f"{name} ({count} a prompt)" if count else name for name, count in drawn.items())
    return [
        ("base model", f"{model['source']} ({model['pipeline']})"),
        ("revision", model["revision"]),
        ("licence of the base model", model["licence"] or "not stated"),
        ("dataset", f"{info['dataset']}: {data['rows']:,} prompts"),
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
