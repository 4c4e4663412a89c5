"""Quoted figures agree with themselves: means are of their columns, and one model has one figure."""

from __future__ import annotations

import json
import math

import pytest

from rankray.evals import geneval, published

NUMBERS = [(number, row) for number in range(1, 8) for row in published.TABLES[number].rows]


@pytest.mark.parametrize("number", published.TABLES)
def test_every_row_has_every_column(number: int) -> None:
    table = published.TABLES[number]
    assert {len(cells) for cells in table.rows.values()} == {len(table.columns)}
    assert set(table.names) <= set(table.columns)


@pytest.mark.parametrize("row", published.TABLES[1].rows)
def test_genevals_mean_is_that_of_its_six_columns(row: str) -> None:
    """Each is rounded to 0.01, so the mean of six can be off by 0.005, and the printed one by as much again."""
    table = published.TABLES[1]
    six = [table.value(row, column) or math.nan for column in table.columns[1:]]
    assert sum(six) / 6 == pytest.approx(table.value(row, "Mean"), abs=0.0101)
    assert [table.names[column] for column in table.columns[1:]] == list(geneval.CATEGORIES)


@pytest.mark.parametrize(("number", "row"), NUMBERS)
def test_figures_are_shares(number: int, row: str) -> None:
    table = published.TABLES[number]
    found = [table.value(row, column) for column in table.columns if column in table.names]
    assert any(value is not None for value in found)
    assert all(0 < value <= 1 for value in found if value is not None)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((3, "SDXL"), (4, "SDXL")),
        ((3, "SDXL"), (5, "SDXL")),
        ((3, "SDXL (Ours)"), (4, "RankDPO")),
        ((4, "RankDPO"), (5, "RankDPO (Ours)")),
        ((3, "DPO-SDXL"), (4, "DPO (Pick-a-Picv2)")),
        ((4, "DPO (5 Rewards)"), (5, "DPO")),
    ],
)
def test_a_model_has_the_same_figures_in_every_table(one: tuple[int, str], other: tuple[int, str]) -> None:
    (first, row), (second, same) = one, other
    assert published.TABLES[first].rows[row] == published.TABLES[second].rows[same]


def test_tables_6_and_7_repeat_tables_2_and_3() -> None:
    two, three, six, seven = (published.TABLES[number] for number in (2, 3, 6, 7))
    for row, same in (("SDXL", "SDXL"), ("SDXL (Ours)", "RankDPO (SDXL)")):
        assert two.rows[row][:5] == six.rows[same][:5]
        assert three.rows[row][0] == six.rows[same][5]
    for row, same in (
        ("DPO-SDXL", "DPO"),
        ("MaPO-SDXL", "MaPO"),
        ("SPO-SDXL", "SPO"),
        ("SDXL (Ours)", "Ours"),
    ):
        assert three.rows[row][0] == seven.rows[same][3]
    assert six.rows["ELLA (SDXL)"][5:8] == ("80.23", "112", "34M")
    assert seven.rows["ELLA*"][3] == "80.23"


def test_table_8_adds_up() -> None:
    table = published.TABLES[8]
    prompts, images, preferences, drawing, labels, total = (cells for cells in table.rows.values())
    assert int(str(images[1]).replace(" ", "")) == 4 * int(str(prompts[1]).replace(" ", ""))
    assert float(str(drawing[1]).strip("$")) + 20.0 == float(str(total[1]).strip("< $"))
    assert labels[0] == total[0]
    assert preferences[1] is None


def test_rows_beside_a_benchmark_are_in_its_names_and_units_once_each() -> None:
    found = published.beside("compbench")
    assert found is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["model"] for row in found["rows"]] == [*published.TABLES[2].rows, "ELLA (SDXL)"]
    assert found["rows"][3]["values"] == {
        **{"color": 0.5879, "shape": 0.4687, "texture": 0.5299},
        **{"spatial": 0.2131, "non_spatial": 0.3119, "complex": 0.3237},
    }
    assert found["rows"][-1]["table"] == 6
    assert "complex" not in found["rows"][-1]["values"]
    assert set(found["printed_times"].values()) == {100}
    assert "overall" in found["printed_times"]
    dense = published.beside("dpg")
    assert dense is not None
    assert [row["model"] for row in dense["rows"]] == [*published.TABLES[3].rows, "ELLA (SDXL)"]
    assert dense["rows"][0]["values"] == {"overall": 0.6318}
    assert dense["rows"][5]["values"] == {"overall": 0.7465, "vqascore": 0.8433, "qalign-quality": 0.72}
    assert [item["table"] for item in dense["tables"]] == [3, 6]
    assert dense["printed_times"] == {"overall": 100, "vqascore": 100, "qalign-quality": 1}
    assert published.beside("my-prompts") is None


def test_a_cell_without_a_figure_is_none_and_words_are_no_figure() -> None:
    assert published.TABLES[3].value("SD1.5", "VQA Score") is None
    assert published.TABLES[7].rows["DPO"][2] is None
    with pytest.raises(ValueError, match="34M"):
        published.TABLES[7].value("ELLA*", "Training Images")
    with pytest.raises(KeyError):
        published.TABLES[1].value("SD9", "Mean")
