"""The Grafana dashboard asks for what the code tells, all of it and nothing else, in PromQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser

from rankray.cluster import metrics

DASHBOARD = json.loads((Path(__file__).parents[3] / "cluster" / "grafana-dashboard.json").read_text())
MACROS = {"$__range": "1h"}
"""What Grafana fills in that no PromQL is; a variable within quotes is."""


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"]
            for macro, example in MACROS.items():
                text = text.replace(macro, example)
            yield text


def selectors(text: str) -> list[Any]:
    """The series that an expression reads."""
    found = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(text), visit)
    return found


def test_the_dashboard_draws_every_metric_and_no_other() -> None:
    told = {f"ray_{metrics.PREFIX}{name}_total" for name in metrics.COUNTERS}
    told |= {f"ray_{metrics.PREFIX}{name}" for name in metrics.GAUGES}
    read = {selector.name for text in expressions() for selector in selectors(text)}
    assert read == told


def test_every_series_is_of_the_outputs_that_are_chosen() -> None:
    (output,) = (one for one in DASHBOARD["templating"]["list"] if one["name"] == "output")
    assert output["query"]["query"] == f"label_values(ray_{metrics.PREFIX}items_total, {metrics.TAGS[0]})"
    for text in expressions():
        assert [str(selector.matchers) for selector in selectors(text)] == [
            '{output=~"$output"}' for _ in selectors(text)
        ], text


def test_a_legend_names_labels_that_its_series_keep() -> None:
    """`sum by (output)` has no `{{model}}`."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            by = target["expr"].partition(" by (")[2].partition(")")[0]
            named = {part.partition("}}")[0] for part in target["legendFormat"].split("{{")[1:]}
            assert named <= set(by.split(", ")) <= {*metrics.TAGS, ""}, panel["title"]


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
