"""`report.html`: what a person looks at first. One self-contained file, no network, no script.

Numbers come from all rows; pictures from a sample, spread from prompts on which the rewards are of one mind to
those on which they are not, as thumbnails of at most 256 pixels: 24 prompts of four 1024-pixel pictures are 2 MB
instead of 170. Prompts are other people's text: the template escapes everything. A picture that cannot be read
costs its place in the report and not the job.
"""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from PIL import Image

from rankray import store
from rankray.cost import PAPER_PROMPTS, usd_for_prompts
from rankray.figures import Figures, collect

SHOWN_PROMPTS = 24
THUMBNAIL_PIXELS = 256
PICTURE_BYTES = 4_000_000
"""What all pictures may take together (5.3 MB as base64), however many candidates a prompt has."""
PIXELATED_PIXELS = 128
"""Pictures up to this size are shown enlarged as sharp squares; larger ones smoothly."""
PROMPT_CHARACTERS = 240
_Item = TypeVar("_Item")
_BINS = 24
_SIDES = (THUMBNAIL_PIXELS, 192, 128, 96, 64)
_SHOWN_AS_IS = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp"}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ROWS_AT_ONCE = 16
_FILES_AT_ONCE = 16
"""An object store takes 50 ms for a request, and 58,000 prompts are 3,625 files."""


@dataclass
class Census:
    """What choosing the shown prompts needs to know of all rows, noted while the figures pass over them.

    Attributes:
        unanimity: prompt id -> `unanimity` of its scores.
        failed: ids of prompts with a failure.
        prompts: text of those prompts whose ids were asked for.
    """

    wanted: frozenset[str]
    unanimity: dict[str, float] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    prompts: dict[str, str] = field(default_factory=dict)

    def passing(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows as they are, each noted on its way."""
        for row in rows:
            row_id, candidates = row["prompt_id"], row["candidates"]
            self.unanimity[row_id] = unanimity([candidate["scores"] for candidate in candidates])
            if any(candidate["error"] for candidate in candidates):
                self.failed.add(row_id)
            if row_id in self.wanted:
                self.prompts[row_id] = row["prompt"]
            yield row


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
    census = Census(frozenset(fault["prompt_id"] for fault in info["failures"]["examples"]))
    figures = collect(census.passing(_rows(files, fs)), names, rewards)
    chosen = choose(census.unanimity, census.failed)
    pictures = len(chosen) * max(1, sum(item["samples"] for item in info["generators"]))
    blocks = {
        row["prompt_id"]: shown(row, rewards, PICTURE_BYTES // max(1, pictures))
        for row in _with_images(files, fs, chosen)
    }
    html = (
        environment()
        .get_template("report.html.j2")
        .render(
            info=info,
            rewards=rewards,
            standings=standings(names, figures),
            win_matrix=[(name, figures.win_share[i].tolist()) for i, name in enumerate(names)],
            ties=tie_share(figures),
            agreement=[(name, figures.agreement[i].tolist()) for i, name in enumerate(rewards)],
            histograms=histograms(names, rewards, figures),
            shown=[blocks[row_id] for row_id in chosen],
            usd_paper=usd_for_prompts(info["cost"]["totals"], info["candidates"] // max(info["rows"], 1)),
            paper_prompts=PAPER_PROMPTS,
            failures=sorted(info["failures"]["by_model"].items()),
            examples=[
                {**fault, "prompt": census.prompts.get(fault["prompt_id"])}
                for fault in info["failures"]["examples"]
            ],
            identity=sorted(info["identity"].items()),
        )
    )
    store.write_text(f"{place}/report.html", html, fs)


def environment() -> jinja2.Environment:
    """This package's templates: text is escaped and made printable, an undefined name is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("rankray", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    made.filters |= {
        "number": number,
        "money": money,
        "percent": percent,
        "seconds": seconds,
        "short": short,
    }
    return made


def _rows(files: Sequence[str], fs: pafs.FileSystem) -> Iterator[dict[str, Any]]:
    """All rows without their images, in the files' order."""
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for start in range(0, len(files), _FILES_AT_ONCE):
            batch = files[start : start + _FILES_AT_ONCE]
            for table in pool.map(functools.partial(store.read_table, fs=fs), batch):
                yield from table.to_pylist()


def _with_images(
    files: Sequence[str], fs: pafs.FileSystem, chosen: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The chosen rows with their images, in the files' order, from 16 rows at a time."""
    wanted = pa.array(chosen, pa.string())
    for file in files:
        ids = pq.read_table(file, columns=["prompt_id"], filesystem=fs)["prompt_id"]
        if not pc.any(pc.is_in(ids, wanted)).as_py():
            continue
        for batch in pq.ParquetFile(file, filesystem=fs).iter_batches(batch_size=_ROWS_AT_ONCE):
            for row in pc.indices_nonzero(pc.is_in(batch["prompt_id"], wanted)).to_pylist():
                yield batch.slice(row, 1).to_pylist()[0]


def unanimity(scores: npt.ArrayLike) -> float:
    """How far the rewards are of one mind about a prompt's candidates.

    The mean over pairs of candidates of |votes for one - votes for the other| / votes: 1 where all rewards order
    every pair alike, 0 where they cancel out. A tie is a vote for neither; pairs without votes are left out.

    Args:
        scores: float[K, N], NaN where a reward failed.

    Returns:
        0 .. 1, or NaN where no pair has two scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    first, second = np.triu_indices(values.shape[0], 1)
    ours, theirs = values[first], values[second]  # [pairs, N]
    cast = np.count_nonzero(~np.isnan(ours) & ~np.isnan(theirs), axis=-1)
    margin = np.abs((ours > theirs).sum(axis=-1) - (ours < theirs).sum(axis=-1))  # NaN compares as no vote
    balance = margin[cast > 0] / cast[cast > 0]
    return float(balance.mean()) if balance.size else float("nan")


def choose(unanimity: Mapping[str, float], failed: Iterable[str], count: int = SHOWN_PROMPTS) -> list[str]:
    """Ids of the prompts to show, from those that the rewards agree on most to those that they agree on least.

    At most a quarter are prompts with failures; the others are spread evenly over the order by unanimity, both
    ends included. A function of the ids and their unanimity alone, whatever the rows' order.
    """

    def key(row_id: str) -> tuple[float, str]:
        value = unanimity[row_id]
        return (-1.0 if np.isnan(value) else value, row_id)

    order = sorted(unanimity, key=key, reverse=True)
    faulty = set(failed)
    chosen = spread([row_id for row_id in order if row_id in faulty], max(1, count // 4))
    chosen += spread([row_id for row_id in order if row_id not in faulty], count - len(chosen))
    return sorted(chosen, key=key, reverse=True)


def spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """`count` items (or all, where there are fewer), evenly spaced from the first to the last."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def tie_share(figures: Figures) -> float | None:
    """The share of comparisons between generators that neither wins; None where there are none."""
    compared = figures.compared.sum() / 2  # each stands in two cells
    return float(1.0 - figures.wins.sum() / compared) if compared else None


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
        columns = [np.array(owner[j], np.float64) for owner in figures.scores]
        columns = [
            column[np.isfinite(column)] for column in columns
        ]  # an infinite score has no place on an axis
        every = np.concatenate(columns)
        if not every.size:
            continue
        low, high = float(every.min()), float(every.max())
        edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
        series = []
        for i, name in enumerate(names):
            counts, _ = np.histogram(columns[i], edges)
            top = counts.max() or 1
            points = " ".join(
                f"{100 * (b + 0.5) / _BINS:.1f},{24 - 22 * c / top:.1f}" for b, c in enumerate(counts)
            )
            mean = float(columns[i].mean()) if columns[i].size else None
            series.append({"name": name, "points": f"0,24 {points} 100,24", "mean": mean})
        found.append({"reward": reward, "low": low, "high": high, "series": series})
    return found


def shown(row: dict[str, Any], rewards: Sequence[str], picture_bytes: int) -> dict[str, Any]:
    """A row as the template shows it: candidates in rank order, failed ones last."""
    candidates = sorted(row["candidates"], key=lambda c: c["rank"] or len(row["candidates"]) + 1)
    return {
        "id": row["prompt_id"],
        "prompt": row["prompt"],
        "unanimity": unanimity([candidate["scores"] for candidate in candidates]),
        "candidates": [
            {
                **{key: candidate[key] for key in ("generator", "rank", "seed", "error", "win_probability")},
                **_picture(candidate, picture_bytes),
                "scores": list(zip(rewards, candidate["scores"], strict=True)),
            }
            for candidate in candidates
        ],
    }


def _picture(candidate: dict[str, Any], limit_bytes: int) -> dict[str, Any]:
    """`src` (None without a picture), `missing` (why) and `pixelated` of a candidate."""
    found: dict[str, Any] = {"src": None, "missing": "no picture", "pixelated": False}
    if candidate["image"] is None:
        return found
    try:
        found["src"] = thumbnail(candidate["image"], limit_bytes)
    except (
        OSError,
        ValueError,
        SyntaxError,
    ) as error:  # what Pillow and file systems raise for a broken picture
        return found | {"missing": f"the picture cannot be read: {type(error).__name__}: {error}"}
    return found | {"pixelated": max(candidate["width"], candidate["height"]) <= PIXELATED_PIXELS}


def thumbnail(image: dict[str, Any], limit_bytes: int = PICTURE_BYTES, sides: Sequence[int] = _SIDES) -> str:
    """A data: URI of the picture, at most `sides[0]` pixels (256) wide and high.

    A picture that is small enough already, in pixels and in bytes, stays what it is. Any other becomes the
    JPEG of the first side of at most `limit_bytes`, or of the last side (64 pixels) where none is so small.

    Raises:
        OSError, ValueError, SyntaxError: it is missing, cut short, or no picture (as Pillow says it).
    """
    data = store.image_bytes(image)
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        kind = _SHOWN_AS_IS.get(picture.format or "")
        if kind and max(picture.size) <= sides[0] and len(data) <= limit_bytes:
            return _data_uri(kind, data)
        small = picture.convert("RGB")
    buffer = io.BytesIO()
    for side in sides:
        small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=88)
        if buffer.tell() <= limit_bytes:
            break
    return _data_uri("jpeg", buffer.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def printable(text: str) -> str:
    """The text with each control character, which HTML has no place for, as U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


def short(text: str, characters: int = PROMPT_CHARACTERS) -> str:
    """The text, or its beginning and an ellipsis where it is longer."""
    return text if len(text) <= characters else text[:characters].rstrip() + "…"


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
