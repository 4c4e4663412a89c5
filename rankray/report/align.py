"""`report.html` of Algorithm 3: the gain of each round, and the pictures that changed most. One file, no network.

Pictures are the held-out ones that the comparison was made of, embedded as they are: twelve pairs of 64-pixel pictures
are 100 KB, of 1024-pixel ones thumbnails of 256 pixels 1 MB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.fs as pafs

from rankray import store
from rankray.config.ablate import CHECKER
from rankray.evals import scores as evaluation
from rankray.report.card import keep_gain, write_cards
from rankray.report.pages import Shown, difference, picture, write_page

PAIRS = 6
"""Pictures shown that changed most, of those that improved and of those that got worse."""


def write_align_report(uri: str, info: dict[str, Any]) -> None:
    """Writes `uri/report.html` from align.json's contents and the evaluations beside it; and each round's gain beside
    its run and into the cards of its model."""
    rounds = [
        {**found, "table": [_row(name, row) for name, row in found["gain"].items()]}
        for found in info["rounds"]
    ]
    last = f"round-{len(rounds)}"
    values = {
        "rounds": rounds,
        "failures": info.get("failures"),
        "cost": info.get("cost"),  # which older files have not
        "verdict": verdict(info["rounds"][-1]["gain"]),
        "pairs": changed(f"{uri}/evaluation/before", f"{uri}/evaluation/{last}"),
    }
    write_page(uri, "align.html.j2", values)
    fs, place = store.filesystem(uri)
    for number, found in enumerate(rounds, 1):
        run, words = f"round-{number}/rankdpo", "{before} → {after}: {gain} ({interval}), {verdict}"
        gain = {row["name"]: words.format(**row) for row in found["table"]}
        told = f"{place}/{run}/run.json"
        if fs.get_file_info(told).type == pafs.FileType.File:  # a page can be written again without its runs
            trained = store.read_json(told, fs)
            keep_gain(f"{uri}/{run}", trained, gain)
            write_cards(f"{uri}/{run}", trained)


def verdict(gain: dict[str, Any]) -> str:
    """The result in one line: the checker's where there is one, else the first reward's."""
    name = CHECKER if CHECKER in gain else next(iter(gain))
    return "{name}: {before} before, {after} after: {verdict}".format(**_row(name, gain[name]))


def _row(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A metric's gain; the checker's figures are shares."""
    level: Shown = "{:.4f}".format
    change: Shown = "{:+.4f}".format
    if name == CHECKER:
        level, change = "{:.1%}".format, lambda value: f"{100 * (value or 0.0):+.1f} points"
    return {"name": name, **difference(row, level, change)}


def changed(before: str, after: str) -> list[dict[str, Any]]:
    """Pairs of pictures of one prompt and seed whose mean standardised score changed most, up and down."""
    first, second = evaluation.read(before), evaluation.read(after)
    scores = np.stack([np.stack(list(side.scores.values())) for side in (first, second)])  # [2, N, P, S]
    spread = np.maximum(np.nanstd(scores, axis=(0, 2, 3), keepdims=True), 1e-12)
    change = (scores[1] - scores[0]) / spread[0]
    known = ~np.isnan(change)
    mean = np.where(known, change, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    chosen = evaluation.most_changed(mean, PAIRS)
    places = {(first.ids[p], s) for p, s in chosen}
    pictures = [evaluation.images_of(side.path, places) for side in (first, second)]
    return [
        {
            "prompt": first.prompts[p],
            "before": picture({"bytes": pictures[0][first.ids[p], s], "path": None}),
            "after": picture({"bytes": pictures[1][first.ids[p], s], "path": None}),
            "change": f"{mean[p, s]:+.1f} standard deviations",
        }
        for p, s in chosen
    ]
