"""`report.html` of a training run: its curves, its sample pictures, its settings. No script. And its model cards.

Everything is read from the run's directory, so the page can be written again at any time, also for a run that was
cut short. Sample grids share 4 MB (5.3 MB as base64): eight grids of sixteen 1024-pixel pictures take 170 MB as they
were drawn, and here 500 KB each at most. What is missing or cannot be read costs its place on the page, not the page.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from rankray import store
from rankray.report import charts
from rankray.report.card import write_cards
from rankray.report.charts import Floats
from rankray.report.pages import PICTURE_BYTES, PIXELATED_PIXELS, picture, spread, write_page
from rankray.words import compact, percent

SHOWN_GRIDS = 8
GRID_SIDES = (1536, 1024, 768, 512, 256)
"""Largest sides that a grid is tried at, until it fits its share of `PICTURE_BYTES`."""
_GRID = re.compile(r"step-(\d+)\.png")
_LEARNT = (
    "loss",
    "loss_preference",
    "loss_nll",
    "implicit_accuracy",
    "margin",
    "model_error",
    "ref_error",
    "grad_norm",
)


@dataclass(frozen=True)
class Curve:
    """One chart: its title, what its axis measures, and the columns drawn, by their names in the legend.

    Attributes:
        scale: what the columns are multiplied by.
        level: a value to draw a line at, in the axis's units.
        noisy: False for what is set and not measured, which needs no average; nor do columns of held-out prompts,
            which are measured at a few steps at fixed noises, with straight lines between.
    """

    title: str
    unit: str
    columns: dict[str, str]
    scale: float = 1.0
    level: float | None = None
    noisy: bool = True


CURVES = (
    Curve("Loss", "mean of a step's prompts", {"loss": "loss", "nll × its weight": "loss_nll"}),
    Curve("Preference", "the loss without added terms", {"preference": "loss_preference"}),
    Curve(
        "Implicit accuracy",
        "% of pairs",
        {"training": "implicit_accuracy", "held out": "validation_implicit_accuracy"},
        100.0,
        50.0,
    ),
    Curve(
        "Held-out errors over the reference's",
        "%",
        {"preferred": "validation_chosen_rise", "rejected": "validation_rejected_rise"},
        100.0,
        0.0,
        noisy=False,
    ),
    Curve("Margin", "β × difference of errors", {"margin": "margin"}),
    Curve("Denoising error", "mean squared error", {"model": "model_error", "reference": "ref_error"}),
    Curve("Gradient norm", "L2, before clipping", {"norm": "grad_norm"}),
    Curve("Learning rate", "of the optimizer", {"rate": "learning_rate"}, noisy=False),
    Curve("Throughput", "prompts/s", {"prompts/s": "prompts_per_s"}),
    Curve("Waiting for data", "% of a step's time", {"wait": "data_wait_share"}, 100.0),
)


@dataclass(frozen=True)
class Metrics:
    """The lines of `metrics.jsonl` by rising step, each step once, and what is to be said about the file."""

    lines: list[dict[str, Any]]
    notes: list[str]

    @property
    def steps(self) -> Floats:
        """float[lines]."""
        return np.array([line["step"] for line in self.lines], np.float64)


def write_run_report(uri: str, info: dict[str, Any]) -> None:
    """Writes `report.html` into the run's directory, whole, and the cards of the models that lie there.

    Args:
        uri: the run's output, a directory or URI on any Arrow filesystem.
        info: what its `run.json` says or will say; any key may be missing, and its row then is too.
    """
    fs, place = store.filesystem(uri)
    metrics = parse_metrics(store.read_text(f"{place}/metrics.jsonl", fs))
    skipped = skipped_steps(metrics)
    columns = learnt(metrics, skipped)
    grids, sampled = samples(uri)
    values = {
        "info": info,
        "at": at,
        "verdict": verdict(info, metrics, columns),
        "notes": metrics.notes,
        "ends": {key: ends(values) for key, values in columns.items()},
        "memory_gb": float(np.nanmax(column(metrics.lines, "memory_gb"), initial=0.0)),
        "curves": curves(metrics.steps, columns, skipped),
        "span": average_span(len(metrics.lines)),
        "bin": math.ceil(len(metrics.lines) / charts.MAX_POINTS),
        "skipped": skipped,
        "grids": grids,
        "sampled": sampled,
        "config": store.read_text(f"{place}/config.toml", fs),
    }
    write_page(uri, "run.html.j2", values)
    write_cards(uri, info)


def parse_metrics(text: str | None) -> Metrics:
    """The lines of a `metrics.jsonl`; of a step that stands twice the later, as a resumed run wrote it again.

    A line that is no JSON object with a whole `step`, such as the half of one that a kill leaves last, is left out.
    """
    if text is None:
        return Metrics([], ["There is no metrics.jsonl, so there are no curves."])
    by_step: dict[int, dict[str, Any]] = {}
    broken: list[int] = []
    rows = [row for row in text.split("\n") if row.strip()]
    for place, row in enumerate(rows):
        try:
            line = json.loads(row, parse_int=float)
        except (ValueError, RecursionError):
            line = None
        step = line.get("step") if isinstance(line, dict) else None
        if isinstance(step, float) and step.is_integer():
            by_step[int(step)] = line
        else:
            broken.append(place)
    notes = [] if by_step else ["metrics.jsonl holds no steps, so there are no curves."]
    if broken and broken[-1] == len(rows) - 1:
        notes.append("The last line of metrics.jsonl is only half written and is left out.")
        broken.pop()
    if broken:
        what = "line of metrics.jsonl is" if len(broken) == 1 else "lines of metrics.jsonl are"
        notes.append(f"{len(broken):,} {what} not readable and left out.")
    return Metrics([by_step[step] for step in sorted(by_step)], notes)


def column(lines: Sequence[dict[str, Any]], key: str) -> Floats:
    """One value of every line: float[lines], NaN where it is missing, null or no finite number."""
    found = [line.get(key) for line in lines]
    values = np.array([value if type(value) is float else math.nan for value in found], np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def skipped_steps(metrics: Metrics) -> list[int]:
    """Steps that changed no weight: their loss is null, or the run's count of skipped steps rose with them."""
    loss, count, steps = column(metrics.lines, "loss"), column(metrics.lines, "skipped_steps"), metrics.steps
    told = np.array(["loss" in line for line in metrics.lines], np.bool_)
    before = np.concatenate([[0.0], count])[:-1]
    next_to_it = np.diff(steps, prepend=0.0) == 1  # across lost lines a count says nothing about one step
    return [int(step) for step in steps[(told & np.isnan(loss)) | (next_to_it & (count > before))]]


def learnt(metrics: Metrics, skipped: Sequence[int]) -> dict[str, Floats]:
    """Every column that is drawn: float[lines], NaN where a value means nothing.

    Nothing was learnt from in a skipped step, no pair was judged where there was none (an objective that compares
    nothing writes zeros), and a reference whose every error is 0 is none: pairs were then judged by the model alone,
    which is not what held-out pairs beside them are judged by.
    """
    names = {name for curve in CURVES for name in curve.columns.values()}
    found = {name: column(metrics.lines, name) for name in names}
    gone = np.isin(metrics.steps, list(skipped))
    empty = {key: gone | (column(metrics.lines, key) == 0) for key in ("pairs", "prompts")}
    for name in _LEARNT:
        nothing = empty["pairs" if name in ("implicit_accuracy", "margin") else "prompts"]
        found[name] = np.where(nothing, np.nan, found[name])
    if not np.nansum(np.abs(found["ref_error"])):
        for name in ("ref_error", "implicit_accuracy", "margin"):
            found[name] = np.full(len(metrics.lines), np.nan)
    for name in names:
        if name.startswith("validation_"):
            found[name] = _joined(metrics.steps, found[name])
    wait, step_s = column(metrics.lines, "data_wait_s"), column(metrics.lines, "step_s")
    share = np.divide(wait, step_s, out=np.full_like(wait, np.nan), where=step_s > 0)
    return found | {"data_wait_share": share}


def _joined(steps: Floats, values: Floats) -> Floats:
    """Straight lines between the steps that have a value, as one in 25 has it; NaN before the first and after the
    last."""
    known = ~np.isnan(values)
    if not known.any():
        return values
    return np.interp(steps, steps[known], values[known], left=np.nan, right=np.nan)


def ends(values: Floats) -> tuple[float, float] | None:
    """Means of the first and the last tenth of what is known (at least one value each); None where nothing is."""
    known = values[~np.isnan(values)]
    tenth = max(1, known.size // 10)
    return (float(known[:tenth].mean()), float(known[-tenth:].mean())) if known.size else None


def verdict(info: dict[str, Any], metrics: Metrics, columns: dict[str, Floats]) -> str:
    """The run in one line: steps, then accuracy, loss and error, by the first and the last tenth of the steps."""
    due = info.get("steps")
    if not metrics.lines:
        return "No steps on record"
    done = int(metrics.lines[-1]["step"])
    of = "" if due is None or due == done else f" of {due:,}"
    said = [f"{done:,}{of} {'step' if (due or done) == 1 else 'steps'}"]
    for label, key, text in (
        ("implicit accuracy", "implicit_accuracy", percent),
        ("loss", "loss", compact),
        ("its preference part", "loss_preference", compact),
    ):
        if moved := ends(columns[key]):
            first, last = (text(value) for value in moved)
            said.append(f"{label} {last}" if first == last else f"{label} {first} → {last}")
    model, reference = ends(columns["model_error"]), ends(columns["ref_error"])
    if model and reference and reference[1]:
        change = model[1] / reference[1] - 1.0
        said.append(f"error {percent(abs(change))} {'below' if change < 0 else 'above'} the reference's")
    return ", ".join(said)


def curves(steps: Floats, columns: dict[str, Floats], skipped: Sequence[int]) -> list[dict[str, Any]]:
    """Each chart of `CURVES` that has values, with its lines' least, greatest and last ones."""
    span = average_span(steps.size)
    drawn = []
    for curve in CURVES:
        series = {name: curve.scale * columns[key] for name, key in curve.columns.items()}
        series = {name: values for name, values in series.items() if not np.isnan(values).all()}
        exact = [name for name, key in curve.columns.items() if key.startswith("validation_")]
        chart = charts.line_chart(steps, series, span if curve.noisy else 1, skipped, curve.level, exact)
        if chart is not None:
            ranges = [(name, *_range(steps, values)) for name, values in series.items()]
            drawn.append({"curve": curve, "chart": chart, "ranges": ranges})
    return drawn


def _range(steps: Floats, values: Floats) -> list[str]:
    """In words: the least value, its step, the greatest, its step, the last."""
    places = [int(np.nanargmin(values)), int(np.nanargmax(values))]
    last = float(values[~np.isnan(values)][-1])
    return [text for i in places for text in (compact(values[i]), f"{steps[i]:,.0f}")] + [compact(last)]


def average_span(lines: int) -> int:
    """Steps of the curves' exponential average: a twentieth of the run, at least 5."""
    return max(5, lines // 20)


def samples(uri: str) -> tuple[list[dict[str, Any]], list[str]]:
    """At most `SHOWN_GRIDS` grids, the newest beside the first and the others after them, and their prompts."""
    fs, place = store.filesystem(uri)
    found = fs.get_file_info(pafs.FileSelector(f"{place}/samples", allow_not_found=True))
    names = {int(match[1]): match[0] for item in found if (match := _GRID.fullmatch(item.base_name))}
    steps = spread(sorted(names), SHOWN_GRIDS)
    steps = [*steps[:1], *steps[1:][-1:], *steps[1:-1]]
    try:
        said = store.read_json(f"{place}/samples/prompts.json", fs)
    except (OSError, ValueError):  # not there, or half written
        said = {}
    prompts, columns = at(said, "prompts"), at(said, "columns")
    cell = PIXELATED_PIXELS * (columns if isinstance(columns, int) else 1)
    limit = PICTURE_BYTES // max(1, len(steps))
    grids = [
        {
            "step": step,
            **picture({"bytes": None, "path": f"{uri}/samples/{names[step]}"}, limit, GRID_SIDES, cell),
        }
        for step in steps
    ]
    return grids, [str(prompt) for prompt in prompts] if isinstance(prompts, list) else []


def at(info: Any, *keys: str) -> Any:
    """`info[key][key]...`, None where any of them is missing."""
    for key in keys:
        info = info.get(key) if isinstance(info, dict) else None
    return info
