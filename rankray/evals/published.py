"""What the paper prints: the figures of its Tables 1 to 8, as quoted, so that one's own can stand beside them.

Scalable Ranked Preference Optimization for Text-to-Image Generation (arXiv 2410.18013), first version, October 2024.
The figures stand in `published.toml`, from machine transcriptions of the paper's PDF. They are 55 rows; what can be
checked of them is: GenEval's means are those of their columns, and a model's figures are the same in every table that
has them.

They were measured with the authors' judges. Those of rankray that differ say so (`EvalSpec.departures`), and a figure
of another judge is no measure of the same thing: compare differences rather than levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankray.config import read_toml

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
        percent: the columns that are in per cent, where rankray has shares.
        benchmarks: rankray's names of the benchmarks beside whose figures the rows belong.
        note: what one has to know to compare with it.
    """

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[str | None, ...]]
    names: Mapping[str, str]
    percent: tuple[str, ...]
    benchmarks: tuple[str, ...]
    note: str

    def value(self, row: str, column: str) -> float | None:
        """A figure in rankray's unit; None where the cell holds none.

        Raises:
            KeyError: no such row.
            ValueError: no such column, or a cell of words.
        """
        cell = self.rows[row][self.columns.index(column)]
        return None if cell is None else round(float(cell) * (0.01 if column in self.percent else 1.0), 10)


def _table(stored: Mapping[str, Any]) -> Quoted:
    head, *lines = ([cell.strip() for cell in line.split("|")] for line in stored["rows"].splitlines())
    return Quoted(
        title=stored["title"],
        columns=tuple(head[1:]),
        rows={n: tuple(None if cell in (MISSING, LOST) else cell for cell in cells) for n, *cells in lines},
        names=stored.get("names", {}),
        percent=tuple(stored.get("percent", ())),
        benchmarks=tuple(stored.get("benchmarks", ())),
        note=stored.get("note", ""),
    )


_STORED = read_toml(Path(__file__).with_name("published.toml"))
SOURCE: str = _STORED["source"]
TABLES = {int(number): _table(stored) for number, stored in _STORED["tables"].items()}


def beside(benchmark: str) -> dict[str, Any] | None:
    """The published rows that belong beside a benchmark's own, JSON-ready, in rankray's names and units.

    Returns:
        {"source", "tables": [{"table", "title", "note"}], "columns": {rankray's name: the paper's}, "rows": [{"model",
        "table", "values": {rankray's name: figure}}], "printed_times": {rankray's name: what the paper multiplies a
        figure by to print it, 1 or 100}}; None where the paper has none. A row of a later table whose figures all stand
        in an earlier row is that row again, and is left out.
    """
    tables = {number: table for number, table in TABLES.items() if benchmark in table.benchmarks}
    if not tables:
        return None
    rows: list[dict[str, Any]] = []
    for number, table in tables.items():
        # Of Table 6, which is of two benchmarks, the columns of this one.
        names = {
            column: name
            for column, name in table.names.items()
            if len(table.benchmarks) == 1 or (name == "overall") == (benchmark == "dpg")
        }
        for label in table.rows:
            figures = {name: table.value(label, column) for column, name in names.items()}
            values = {name: figure for name, figure in figures.items() if figure is not None}
            if not any(values.items() <= row["values"].items() for row in rows):
                rows.append({"model": label, "table": number, "values": values})
    own = next(iter(tables.values()))
    times = {name: 100 if column in own.percent else 1 for column, name in own.names.items()}
    # T2I-CompBench's table has no headline; it would be in its unit.
    times.setdefault("overall", max(times.values()))
    return {
        "source": SOURCE,
        "tables": [
            {"table": number, "title": tables[number].title, "note": tables[number].note}
            for number in sorted({row["table"] for row in rows})
        ],
        "columns": {name: printed for printed, name in own.names.items()},
        "rows": rows,
        "printed_times": times,
    }
