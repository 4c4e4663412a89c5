"""`report.html`: what a person looks at first. One self-contained file, no network, no script.

Numbers come from all rows; pictures from a sample spread over the dataset, as thumbnails of at most 256 pixels:
24 prompts of four 1024-pixel pictures are 2 MB instead of 170. Prompts are other people's text: the template
escapes everything.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from PIL import Image

from rankray import store
from rankray.cost import PAPER_PROMPTS, usd_for_prompts
from rankray.figures import Figures, collect

SHOWN_PROMPTS = 24
THUMBNAIL_PIXELS = 256
PROMPT_CHARACTERS = 240
_BINS = 24


def write_report(path: str, info: dict[str, Any]) -> None:
    """Writes `report.html` into the dataset at `path`.

    Args:
        path: the dataset's directory or URI; its data files are there.
        info: what its `dataset.json` says or will say.
    """
    fs, place = store.filesystem(path)
    files = store.data_files(fs, place)
    names = [item["name"] for item in info["generators"]]
    rewards = [item["name"] for item in info["rewards"]]
    rows = (row for file in files for row in store.read_table(file, fs).to_pylist())
    figures = collect(rows, names, rewards)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rankray", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "money": money, "percent": percent, "seconds": seconds}
    html = environment.get_template("report.html.j2").render(
        info=info,
        rewards=rewards,
        standings=standings(names, figures),
        win_matrix=[(name, figures.win_share[i].tolist()) for i, name in enumerate(names)],
        agreement=[(name, figures.agreement[i].tolist()) for i, name in enumerate(rewards)],
        histograms=histograms(names, rewards, figures),
        shown=[_shown(row, rewards) for row in sample(files, fs)],
        usd_paper=usd_for_prompts(info["cost"]["totals"], info["candidates"] // max(info["rows"], 1)),
        paper_prompts=PAPER_PROMPTS,
        failures=sorted(info["failures"]["by_model"].items()),
    )
    store.write_text(f"{place}/report.html", html, fs)


def standings(names: Sequence[str], figures: Figures) -> list[dict[str, Any]]:
    """A row a generator, best first: mean win probability, and its share of first ranks."""
    prompts = figures.firsts.sum()
    rows = [
        {
            "name": name,
            "phi": figures.phi_sum[i] / figures.counted[i] if figures.counted[i] else None,
            "firsts": figures.firsts[i] / prompts if prompts else None,
        }
        for i, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: -(row["phi"] if row["phi"] is not None else -1.0))


def histograms(names: Sequence[str], rewards: Sequence[str], figures: Figures) -> list[dict[str, Any]]:
    """For each reward, each generator's scores as the points of a 100 x 24 SVG area over one common axis."""
    found = []
    for j, reward in enumerate(rewards):
        every = [score for owner in figures.scores for score in owner[j]]
        if not every:
            continue
        low, high = float(np.min(every)), float(np.max(every))
        edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
        series = []
        for i, name in enumerate(names):
            counts, _ = np.histogram(figures.scores[i][j], edges)
            top = counts.max() or 1
            points = " ".join(
                f"{100 * (b + 0.5) / _BINS:.1f},{24 - 22 * c / top:.1f}" for b, c in enumerate(counts)
            )
            mean = float(np.mean(figures.scores[i][j])) if figures.scores[i][j] else None
            series.append({"name": name, "points": f"0,24 {points} 100,24", "mean": mean})
        found.append({"reward": reward, "low": low, "high": high, "series": series})
    return found


def sample(files: Sequence[str], fs: pafs.FileSystem, count: int = SHOWN_PROMPTS) -> list[dict[str, Any]]:
    """`count` rows with images: first those with failures (at most a quarter), then evenly spread by prompt id."""
    ids: list[str] = []
    failed: list[str] = []
    for file in files:
        for row in store.read_table(file, fs).to_pylist():
            ids.append(row["prompt_id"])
            if any(candidate["error"] for candidate in row["candidates"]):
                failed.append(row["prompt_id"])
    chosen = dict.fromkeys(sorted(failed)[: count // 4])
    rest = [row_id for row_id in sorted(ids) if row_id not in chosen]
    step = max(1.0, len(rest) / max(1, count - len(chosen)))
    chosen |= dict.fromkeys(rest[int(i * step)] for i in range(min(count - len(chosen), len(rest))))
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        ids_here = pq.read_table(file, columns=["prompt_id"], filesystem=fs)["prompt_id"].to_pylist()
        wanted = [row_id in chosen for row_id in ids_here]
        if any(wanted):
            table = store.read_table(file, fs, images=True).filter(pa.array(wanted))
            found |= {row["prompt_id"]: row for row in table.to_pylist()}
    return [found[row_id] for row_id in chosen]


def _shown(row: dict[str, Any], rewards: Sequence[str]) -> dict[str, Any]:
    """A row as the template shows it: candidates in rank order, failed ones last."""
    candidates = sorted(row["candidates"], key=lambda c: c["rank"] or len(row["candidates"]) + 1)
    prompt = row["prompt"].replace("\0", "�")
    cut = len(prompt) > PROMPT_CHARACTERS
    return {
        "id": row["prompt_id"],
        "prompt": prompt[:PROMPT_CHARACTERS] + ("…" if cut else ""),
        "whole": prompt[:2000] if cut else None,
        "candidates": [
            {
                **{key: candidate[key] for key in ("generator", "rank", "seed", "error", "win_probability")},
                "src": thumbnail(candidate["image"]) if candidate["image"] else None,
                "scores": list(zip(rewards, candidate["scores"], strict=True)),
            }
            for candidate in candidates
        ],
    }


def thumbnail(image: dict[str, Any]) -> str:
    """A data: URI of the picture, at most 256 pixels wide and high; small pictures stay exact PNGs."""
    data = store.image_bytes(image)
    kind = "png"
    with Image.open(io.BytesIO(data)) as picture:
        if max(picture.size) > THUMBNAIL_PIXELS or picture.format != "PNG":
            small = picture.convert("RGB")
            small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=88)
            data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def number(value: float | None, digits: int = 3) -> str:
    """`1,234`, `0.123`, or a dash for what is missing."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """`12.3 %`, or a dash."""
    return "–" if value is None or np.isnan(value) else f"{100 * value:.1f} %"


def money(value: float | None) -> str:
    """`$1,234.56`; below ten cents with two significant digits."""
    if value is None:
        return "–"
    return f"${value:,.2f}" if value == 0 or value >= 0.1 else f"${value:.2g}"


def seconds(value: float) -> str:
    """`12.3 s`, `4.5 min`, `6.7 h`."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
