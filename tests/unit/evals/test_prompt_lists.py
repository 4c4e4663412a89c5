"""Which keys of a list count, and what a list is whose benchmark is not asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankray.cli import parse_evaluate
from rankray.config import ConfigError
from rankray.evals.prompt_lists import read_lists

LEAST = ("--output", "/o", "--model", "shapes-sdxl")


@pytest.mark.parametrize(
    ("key", "value"),
    [("shuffle_seed", "0"), ("column", "text"), ("config", "x"), ("split", "test"), ("block", "/b.txt")],
)
def test_keys_that_say_nothing_of_a_benchmarks_file_are_refused(key: str, value: str) -> None:
    """They were taken, and did nothing."""
    given = (*LEAST, "--evals", "shapes", "--prompts.shapes", "shapes:heldout", "--prompts.shapes.limit", "2")
    with pytest.raises(ConfigError) as error:
        read_lists(parse_evaluate([*given, f"--prompts.shapes.{key}", value]))
    assert str(error.value) == f"prompts of benchmark 'shapes': they are its own; leave out `{key}`"
    (found,) = read_lists(parse_evaluate([*given, "--prompts.shapes.column", "prompt"]))
    assert len(found.prompts.rows) == 2


def test_a_list_whose_benchmark_is_not_asked_is_a_plain_one_and_its_keys_have_its_name(
    tmp_path: Path,
) -> None:
    file = tmp_path / "prompts.column.csv"
    file.write_text("item_id,text\na,two owls\na,two owls\nb,a kettle\n")
    given = (*LEAST, "--evals", "shapes-mps", "--prompts.dpg", str(file))
    with pytest.raises(ConfigError) as error:
        read_lists(parse_evaluate(given))
    assert str(error.value).endswith("there are item_id, text; choose by --prompts.dpg.column")
    (found,) = read_lists(parse_evaluate([*given, "--prompts.dpg.column", "text"]))
    assert (found.prompts.rows, found.samples) == (["two owls", "a kettle"], 1)
    with pytest.raises(ConfigError) as error:
        read_lists(parse_evaluate([*given, "--prompts.dpg.block", f"{tmp_path}/none.txt"]))
    assert str(error.value).startswith(f"prompts.dpg.block = {tmp_path}/none.txt cannot be read")
