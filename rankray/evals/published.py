"""What the paper prints: the figures of its Tables 1 to 8, as quoted, so that one's own can stand beside them.

Scalable Ranked Preference Optimization for Text-to-Image Generation (arXiv 2410.18013), first version, October 2024.
The figures are from machine transcriptions of its PDF (`TRANSCRIPTS`), cell by cell as printed there, and nothing is
computed, rounded or completed: a cell that the transcription lost is None. They are 55 rows; what can be checked of
them is: GenEval's means are those of their columns, and a model's figures are the same in every table that has them.

They were measured with the authors' judges. Those of rankray that differ say so (`EvalSpec.departures`), and a figure
of another judge is no measure of the same thing: compare differences rather than levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SOURCE = "arXiv 2410.18013v1"
TRANSCRIPTS = (
    "https://github.com/deep-diver/paper-reviewer/blob/76bfea2a45c1ab575292cba63c4a21963c323a93/"
    "articles/2410.18013/index.md",
    "https://github.com/deep-diver/ai-paper-reviewer/blob/3fbf90df03001f6ab119adbeb5a541dfa65fb8d2/"
    "content/posts/2410.18013/index.md",
)
"""Where the figures were read; the second has all tables but Table 2, and agrees with the first in each cell."""
MISSING = "-"
"""A cell that the paper itself leaves without a figure."""
LOST = "?"
"""A cell that is a mark in the paper, which the transcription lost."""


@dataclass(frozen=True)
class Quoted:
    """A table as it was printed.

    Attributes:
        title: what it is about, in our words; Tables 4 and 5 are measured on DPG-Bench.
        columns: the names of its columns, without that of its rows.
        rows: label -> cells as printed; None where there is no figure.
        names: column -> rankray's name of the same: a benchmark's column, or a reward.
        benchmark: rankray's name of the benchmark, where the table is of one.
        scale: what a figure is multiplied by to be of rankray's unit (0 to 1), by column; 1 where none is given.
        note: what one has to know to compare with it.
    """

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[str | None, ...]]
    names: Mapping[str, str]
    benchmark: str | None = None
    scale: Mapping[str, float] | None = None
    note: str = ""

    def value(self, row: str, column: str) -> float | None:
        """A figure in rankray's unit; None where the cell holds none.

        Raises:
            KeyError: no such row.
            ValueError: no such column, or a cell of words.
        """
        cell = self.rows[row][self.columns.index(column)]
        return None if cell is None else round(float(cell) * (self.scale or {}).get(column, 1.0), 10)


def _rows(text: str) -> dict[str, tuple[str | None, ...]]:
    """A line a row, its cells between bars."""
    lines = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return {
        name: tuple(None if cell in (MISSING, LOST) else cell for cell in cells) for name, *cells in lines
    }


_JUDGED = ("DSG Score", "VQA Score", "Q-Align Score")
_JUDGED_NAMES = {"DSG Score": "overall", "VQA Score": "vqascore", "Q-Align Score": "qalign-quality"}
_JUDGED_SCALE = {"DSG Score": 0.01, "VQA Score": 0.01}
_COMPOSITION = {
    "Color": "color",
    "Shape": "shape",
    "Texture": "texture",
    "Spatial": "spatial",
    "Non-Spatial": "non_spatial",
    "Complex": "complex",
}

TABLES: dict[int, Quoted] = {
    1: Quoted(
        title="GenEval",
        benchmark="geneval",
        columns=("Mean", "Single", "Two", "Counting", "Colors", "Position", "Color Attribution"),
        rows=_rows("""
            SD v2.1 | 0.50 | 0.98 | 0.51 | 0.44 | 0.85 | 0.07 | 0.17
            PixArt-α | 0.48 | 0.98 | 0.50 | 0.44 | 0.80 | 0.08 | 0.07
            PixArt-Σ | 0.53 | 0.99 | 0.65 | 0.46 | 0.82 | 0.12 | 0.12
            DALL-E 2 | 0.52 | 0.94 | 0.66 | 0.49 | 0.77 | 0.10 | 0.19
            DALL-E 3 | 0.67 | 0.96 | 0.87 | 0.47 | 0.83 | 0.43 | 0.45
            SDXL | 0.55 | 0.98 | 0.74 | 0.39 | 0.85 | 0.15 | 0.23
            SDXL (Ours) | 0.61 | 1.00 | 0.86 | 0.46 | 0.90 | 0.14 | 0.29
            SD3-Medium | 0.70 | 1.00 | 0.87 | 0.63 | 0.84 | 0.28 | 0.58
            SD3-Medium (Ours) | 0.74 | 1.00 | 0.90 | 0.72 | 0.87 | 0.31 | 0.66
        """),
        names={
            "Mean": "overall",
            "Single": "single_object",
            "Two": "two_object",
            "Counting": "counting",
            "Colors": "colors",
            "Position": "position",
            "Color Attribution": "color_attr",
        },
        note="SDXL's row is GenEval's own, whose authors' script draws at guidance 9 in 50 steps; a model drawn "
        "otherwise (rankray's row sdxl: guidance 5) is not on that level. "
        "The transcription lost the Greek letters of both PixArt rows. The first row's figures are those that "
        "others print for PixArt-α; that the second is PixArt-Σ is inferred.",
    ),
    2: Quoted(
        title="T2I-CompBench",
        benchmark="compbench",
        columns=tuple(_COMPOSITION),
        rows=_rows("""
            SD1.4 | 37.65 | 35.76 | 41.56 | 12.46 | 30.79 | 30.80
            PixArt-α | 68.86 | 55.82 | 70.44 | 20.82 | 31.79 | 41.17
            DALL-E 2 | 57.50 | 54.64 | 63.74 | 12.83 | 30.43 | 36.96
            SDXL | 58.79 | 46.87 | 52.99 | 21.31 | 31.19 | 32.37
            SDXL (Ours) | 72.33 | 56.93 | 69.67 | 24.53 | 31.33 | 45.47
            SD3-Medium | 81.31 | 59.06 | 75.91 | 34.30 | 31.13 | 47.93
            SD3-Medium (Ours) | 83.26 | 63.45 | 78.72 | 36.49 | 31.25 | 48.65
        """),
        names=_COMPOSITION,
        scale=dict.fromkeys(_COMPOSITION, 0.01),
    ),
    3: Quoted(
        title="DPG-Bench",
        benchmark="dpg",
        columns=_JUDGED,
        rows=_rows("""
            SD1.5 | 63.18 | - | -
            SD2.1 | 68.09 | - | -
            PixArt-α | 71.11 | - | -
            Playgroundv2 | 74.54 | - | -
            DALL-E 3 | 83.50 | - | -
            SDXL | 74.65 | 84.33 | 0.72
            DPO-SDXL | 76.74 | 85.67 | 0.74
            MaPO-SDXL | 74.53 | 84.54 | 0.80
            SPO-SDXL | 74.73 | 84.71 | 0.82
            SDXL (Ours) | 79.26 | 87.52 | 0.81
            SD3-Medium | 85.54 | 90.58 | 0.67
            SD3-Medium (Ours) | 86.78 | 90.99 | 0.68
        """),
        names=_JUDGED_NAMES,
        scale=_JUDGED_SCALE,
        note="The paper calls its Q-Align score one of visual quality, so it stands beside qalign-quality. The "
        "letter of PixArt is lost in the transcription; 71.11 is what others print for PixArt-α.",
    ),
    4: Quoted(
        title="labelling of preferences and quality of data",
        columns=_JUDGED,
        rows=_rows("""
            SDXL | 74.65 | 84.33 | 0.72
            DPO (Random Labelling) | 75.66 | 84.42 | 0.74
            DPO (HPSv2) | 78.04 | 86.22 | 0.83
            DPO (Pick-a-Picv2) | 76.74 | 85.67 | 0.74
            DPO (5 Rewards) | 78.84 | 86.27 | 0.81
            RankDPO (Only SDXL) | 78.40 | 86.76 | 0.74
            RankDPO | 79.26 | 87.52 | 0.81
        """),
        names=_JUDGED_NAMES,
        scale=_JUDGED_SCALE,
    ),
    5: Quoted(
        title="objectives",
        columns=_JUDGED,
        rows=_rows("""
            SDXL | 74.65 | 84.33 | 0.72
            Supervised Fine-Tuning | 76.56 | 85.45 | 0.78
            Weighted Fine-Tuning | 77.02 | 85.55 | 0.79
            DPO | 78.84 | 86.27 | 0.81
            DPO + Gain Weights | 79.15 | 87.43 | 0.82
            RankDPO (Ours) | 79.26 | 87.52 | 0.81
        """),
        names=_JUDGED_NAMES,
        scale=_JUDGED_SCALE,
        note="The transcription has the rows without the table's number, which is that of its place in the paper.",
    ),
    6: Quoted(
        title="against ELLA (T2I-CompBench and DPG-Bench)",
        columns=(
            *("Color", "Shape", "Texture", "Spatial", "Non-Spatial", "DPG Score"),
            *("Train Time (A100 Days)", "Training Data", "Same Inference Time"),
        ),
        rows=_rows("""
            SDXL | 58.79 | 46.87 | 52.99 | 21.31 | 31.19 | 74.65 | - | - | ?
            ELLA (SDXL) | 72.60 | 56.34 | 66.86 | 22.14 | 30.69 | 80.23 | 112 | 34M | X
            RankDPO (SDXL) | 72.33 | 56.93 | 69.67 | 24.53 | 31.33 | 79.26 | 6 | 0.24M | ?
        """),
        names={**_COMPOSITION, "DPG Score": "overall"},
        scale=dict.fromkeys((*_COMPOSITION, "DPG Score"), 0.01),
    ),
    7: Quoted(
        title="features of methods that better a trained model",
        columns=("Training Images", "A100 GPU days", "Equal Inference Cost", "DPG-Bench Score"),
        rows=_rows("""
            DPO | 1.0M | 30 | ? | 76.74
            MaPO | 1.0M | 25 | ? | 74.53
            SPO | - | 5 | ? | 74.73
            ELLA* | 34M | 112 | X | 80.23
            Ours | 0.24M | 6 | ? | 79.26
        """),
        names={"DPG-Bench Score": "overall"},
        scale={"DPG-Bench Score": 0.01},
        note="ELLA* also has another text encoder and an adapter of 470M parameters at each step.",
    ),
    8: Quoted(
        title="cost of the preferences",
        columns=("Pick-a-Picv2", "Syn-Pic"),
        rows=_rows("""
            Number of prompts | 58 000 | 58 000
            Number of images | 1 025 015 | 232 000
            Number of preferences | 959 000 | -
            Image generation cost | - | $185.60
            Annotation/Labelling cost | $47 950.00 | < $20.00
            Total cost | $47 950.00 | < $205.60
        """),
        names={},
        note="Number and caption of this table are lost in the transcription; the number is that of its place.",
    ),
}

_BESIDE = {"geneval": (1,), "compbench": (2, 6), "dpg": (3, 6, 7)}


def beside(benchmark: str) -> dict[str, Any] | None:
    """The published rows that belong beside a benchmark's own, JSON-ready, in rankray's names and units.

    Returns:
        {"source", "tables": [{"table", "title", "note"}], "columns": {rankray's name: the paper's}, "rows": [{"model",
        "table", "values": {rankray's name: figure}}], "printed_times": {rankray's name: what the paper multiplies a
        figure by to print it, 1 or 100}}; None where the paper has none. A row of a later table whose figures all stand
        in an earlier row is that row again, and is left out.
    """
    if benchmark not in _BESIDE:
        return None
    own = TABLES[_BESIDE[benchmark][0]]
    columns = {name: printed for printed, name in own.names.items()}
    rows: list[dict[str, Any]] = []
    for number in _BESIDE[benchmark]:
        table = TABLES[number]
        printed_names = _of_benchmark(table, benchmark)
        for label in table.rows:
            figures = {name: table.value(label, column) for column, name in printed_names.items()}
            values = {name: figure for name, figure in figures.items() if figure is not None}
            if not any(values.items() <= row["values"].items() for row in rows):
                rows.append({"model": label, "table": number, "values": values})
    tables = [
        {"table": number, "title": TABLES[number].title, "note": TABLES[number].note}
        for number in sorted({row["table"] for row in rows})
    ]
    times = {name: round(1 / (own.scale or {}).get(column, 1.0)) for column, name in own.names.items()}
    times.setdefault(
        "overall", max(times.values())
    )  # T2I-CompBench's table has no headline; it would be in its unit
    return {"source": SOURCE, "tables": tables, "columns": columns, "rows": rows, "printed_times": times}


def _of_benchmark(table: Quoted, benchmark: str) -> dict[str, str]:
    """Those columns of a table that are of this benchmark: Table 6 is of two."""
    if table.benchmark:
        return dict(table.names)
    return {
        column: name
        for column, name in table.names.items()
        if column in table.columns and (name == "overall") == (benchmark == "dpg")
    }
