"""A dataset's directory: who owns it, what is staged, what a kill may leave and what is made of it."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from rankray import config, schema, store
from rankray.config import ConfigError, SynPicConfig
from rankray.data import place as output
from rankray.data.place import Output
from rankray.data.prompts import PromptsRead


def settings(**changes: Any) -> SynPicConfig:
    tables: dict[str, Any] = {
        "prompts": {"path": "p.txt"},
        "generators": [{"model": "sdxl", "samples": 2}],
        "rewards": [{"model": "pickscore"}],
        "output": "/o",
    }
    return config.build(SynPicConfig, {**tables, **changes})


def claim(place: Output, settings: SynPicConfig, revisions: Mapping[str, str] = {}) -> None:
    output.claim(place, "dataset.json", output.identity_of(settings, revisions), settings)


@pytest.fixture
def place(tmp_path: Path) -> Output:
    return output.open_output(str(tmp_path / "o"), in_job=False)


def prompts(*rows: str) -> PromptsRead:
    return PromptsRead(rows=list(rows), read=len(rows), empty=0, duplicates=0, undecodable=0, source="p.txt")


def test_opening_writes_nothing(place: Output) -> None:
    assert not Path(place.path).exists()


def test_a_relative_place_is_refused_in_a_job_and_made_absolute_elsewhere(
    tmp_path: Path, monkeypatch
) -> None:
    with pytest.raises(
        ConfigError, match=r"output 'o' is relative, .* Ray deletes .*; give an absolute path"
    ):
        output.open_output("o", in_job=True)
    monkeypatch.chdir(tmp_path)
    assert output.open_output("o", in_job=False).uri == str(tmp_path / "o")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output.open_output("~/x", in_job=True).uri == str(tmp_path / "x")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        output.open_output("nowhere://bucket/o", in_job=False)


def test_options_in_a_uri_are_refused_before_anything_is_computed() -> None:
    """They were dropped where a part's name was put behind them, and every row was written to no place."""
    with pytest.raises(ConfigError, match=r"has options after '\?'.*AWS_ENDPOINT_URL"):
        output.open_output("s3://bucket/o?endpoint_override=127.0.0.1:9000&scheme=http", in_job=True)


def test_claiming_twice_is_fine_and_another_configuration_is_not(place: Output) -> None:
    claim(place, settings(), {"sdxl": "1"})
    later = settings(execution={"mode": "phases"}, prices={"gpu_usd_per_hour": 2.0})
    claim(place, later, {"sdxl": "1"})
    with pytest.raises(
        ConfigError,
        match=r"another configuration.*\n  revision\.sdxl: '1' there, '2' here\n  seed: 0 there, 3 here",
    ):
        claim(place, settings(seed=3), {"sdxl": "2"})
    written = config.build(SynPicConfig, config.read_toml(place.at("config.toml")))
    assert written == later, "status counts by the prices of the last start"
    store.write_json(
        place.at("dataset.json"), {"identity": output.identity_of(later, {"sdxl": "1"})}, place.fs
    )
    claim(place, settings(), {"sdxl": "1"})
    assert config.build(SynPicConfig, config.read_toml(place.at("config.toml"))) == later, "of what made it"


def test_libraries_are_noted_as_they_change(place: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of work that was begun before they were, those of the next start; of finished work nothing."""
    have = {"torch": "2.13.0", "pillow": "12.0"}
    monkeypatch.setattr(output, "versions", lambda: dict(have))
    assert output.note_versions(place) == {}
    claim(place, settings())
    assert output.note_versions(place) == have
    for version in ("2.14.1", "2.14.1", "2.13.0"):
        have["torch"] = version
        noted = output.note_versions(place)
    assert noted == {"torch": "2.13.0, 2.14.1, 2.13.0", "pillow": "12.0"}
    assert output.claimed(place) == output.identity_of(settings(), {})
    store.write_json(place.at("_work/identity.json"), {"identity": {"seed": 0}}, place.fs)
    assert output.note_versions(place) == have
    assert store.read_json(place.at("_work/identity.json"), place.fs)["identity"] == {"seed": 0}


def test_the_libraries_that_compute_are_among_those_that_are_noted() -> None:
    import torch

    assert output.versions()["torch"] == torch.__version__.partition("+")[0]
    assert {"diffusers", "transformers", "pillow"} <= output.versions().keys()


def test_foreign_files_are_left_alone(place: Output) -> None:
    place.make("data")
    pq.write_table(pa.table({"a": [1]}), place.at("data/x.parquet"))
    with pytest.raises(ConfigError, match=r"/data is there, and no rankray job began it"):
        claim(place, settings())
    assert place.files("_work") == []


def test_a_foreign_configuration_is_left_alone(place: Output) -> None:
    place.make("data")
    place.write_text("config.toml", "mine")
    with pytest.raises(ConfigError, match=r"/config\.toml is there, and no rankray job began it"):
        claim(place, settings())


def test_what_a_kill_left_of_staging_is_replaced(place: Output) -> None:
    claim(place, settings())
    place.make("_work", "prompts")
    for number in range(5):
        place.write_text(f"_work/prompts/{number:06}.parquet", "half a file")
    ids = output.stage_prompts(place, prompts(*"abcdef"), rows_per_block=3)
    assert output.finished_ids(place, "_work", "prompts") == ids


def test_other_prompts_on_a_complete_output_are_refused(place: Output) -> None:
    same, other = prompts("a", "b"), prompts("a", "b", "c")
    info = {"rows": 2, "prompts": {"sha256": output.prompts_digest(same.rows)}, "identity": {"seed": 0}}
    place.make("_work")
    store.write_json(place.at("dataset.json"), info, place.fs)
    said: list[str] = []

    def complete(read: PromptsRead, identity: dict[str, Any]) -> dict[str, Any] | None:
        check = functools.partial(output.require_prompts, place, read)
        return output.complete(place, "dataset.json", identity, said.append, check)

    with pytest.raises(ConfigError, match="is complete with 2 prompts"):
        complete(other, {"seed": 0})
    with pytest.raises(ConfigError, match=r"another configuration.*\n  seed: 0 there, 1 here"):
        complete(same, {"seed": 1})
    assert place.exists("_work")
    assert said == []
    assert complete(prompts("b", "a"), {"seed": 0}) == info
    assert said == [f"{place.uri} is complete already; nothing to do"]


def test_what_is_not_finished_is_not_complete_and_the_marker_comes_last(place: Output) -> None:
    assert output.complete(place, "run.json", {"a": 1}, print) is None
    output.claim(place, "run.json", {"a": 1})
    seen: list[bool] = []
    report = lambda uri, info: seen.append(place.exists("run.json"))  # noqa: E731
    published = output.publish(place, "run.json", {"identity": output.claimed(place)}, report)
    assert published == {"identity": {"a": 1}, "seal": published["seal"]}
    assert seen == [False]
    assert place.exists("run.json")
    assert not place.exists("_work")


def test_staged_prompts_are_sorted_blocks(place: Output) -> None:
    claim(place, settings())
    ids = output.stage_prompts(place, prompts(*"abcdefg"), rows_per_block=3)
    assert ids == sorted(schema.prompt_id(letter) for letter in "abcdefg")
    blocks = [pq.read_table(file)["prompt_id"].to_pylist() for file in place.files("_work", "prompts")]
    assert blocks == [ids[:3], ids[3:6], ids[6:]]
    assert output.stage_prompts(place, prompts(*"gfedcba"), rows_per_block=3) == ids
    assert len(place.files("_work", "prompts")) == 3
    with pytest.raises(ConfigError, match=r"other prompts than when .* was begun \(7 then, 1 now\)"):
        output.stage_prompts(place, prompts("x"), rows_per_block=3)


def block_sizes(place: Output) -> list[int]:
    return [pq.read_metadata(file).num_rows for file in place.files("_work", "prompts")]


def test_blocks_of_another_size_are_staged_anew_until_a_phase_is_finished(place: Output) -> None:
    claim(place, settings())
    more = {"place": pa.array([1, 2, 3, 4, 5, 6, 7])}
    ids = output.stage_prompts(place, prompts(*"abcdefg"), 3, "elsewhere", more)
    assert output.stage_prompts(place, prompts(*"abcdefg"), 2, "elsewhere", more, recut=False) == ids
    assert block_sizes(place) == [3, 3, 1]
    assert output.stage_prompts(place, prompts(*"abcdefg"), 2, "elsewhere", more) == ids
    assert block_sizes(place) == [2, 2, 2, 1]
    assert output.finished_ids(place, "_work", "prompts") == ids
    rows = [row for file in place.files("_work", "prompts") for row in pq.read_table(file).to_pylist()]
    assert {row["prompt"]: row["place"] for row in rows} == dict(zip("abcdefg", range(1, 8), strict=True))


def test_prompts_that_were_staged_before_sizes_were_noted_stay(place: Output) -> None:
    claim(place, settings())
    output.stage_prompts(place, prompts(*"abcd"), rows_per_block=3)
    note = store.read_json(place.at("_work/staged.json"), place.fs)
    del note["rows_per_block"]
    store.write_json(place.at("_work/staged.json"), note, place.fs)
    output.stage_prompts(place, prompts(*"abcd"), rows_per_block=2)
    assert block_sizes(place) == [3, 1]


@pytest.mark.parametrize("recut", [True, False])
def test_a_kill_between_two_sizes_leaves_nothing_that_is_taken_for_whole(
    place: Output, monkeypatch: pytest.MonkeyPatch, recut: bool
) -> None:
    """In an object store nobody looks for files that are missing: the note alone says whether all are there."""
    claim(place, settings())
    ids = output.stage_prompts(place, prompts(*"abcd"), rows_per_block=3)
    written = pq.write_table

    def killed(table: pa.Table, where: str, **rest: Any) -> None:
        if where.endswith("000001.parquet"):
            raise KeyboardInterrupt
        written(table, where, **rest)

    monkeypatch.setattr(pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        output.stage_prompts(place, prompts(*"abcd"), rows_per_block=2)
    monkeypatch.setattr(pq, "write_table", written)
    monkeypatch.setattr(output, "lost_ids", lambda *where: [])  # as of an object store
    with pytest.raises(ConfigError, match="other prompts than when"):
        output.stage_prompts(place, prompts("x"), rows_per_block=3, recut=recut)
    assert output.stage_prompts(place, prompts(*"abcd"), rows_per_block=3, recut=recut) == ids
    assert output.finished_ids(place, "_work", "prompts") == ids


def write_ids(place: Output, name: str, *ids: str) -> None:
    pq.write_table(
        pa.table({"prompt_id": list(ids), "n": list(range(len(ids)))}), place.at("data", f"{name}.parquet")
    )


def test_repeats_are_dropped_from_the_later_file(place: Output) -> None:
    place.make("data")
    write_ids(place, "1", "a", "b")
    write_ids(place, "2", "b", "c")
    write_ids(place, "3", "a", "c")
    write_ids(place, "4", "d")
    assert output.drop_repeats(place, "data") == (3, 4)
    assert output.finished_ids(place, "data") == ["a", "b", "c", "d"]
    assert len(place.files("data")) == 3
    assert output.require_rows(place, 4) == 0
    with pytest.raises(RuntimeError, match=r"1 of 5 rows are missing in .*/data; run the command again"):
        output.require_rows(place, 5)
    assert output.drop_repeats(place, "data") == (0, 4)
    with_rows = output.files_with(place, ["c", "d", "z"], "data")
    assert [file.rpartition("/")[2] for file in with_rows] == ["2.parquet", "4.parquet"]


def candidate(
    generator: str, scores: list[float], error: str | None = None, width: int | None = 8
) -> dict[str, Any]:
    image = {"bytes": b"x", "path": None} if width else None
    return {"generator": generator, "image": image, "width": width, "scores": scores, "error": error}


def test_failures_are_counted_by_who_failed(place: Output) -> None:
    place.make("data")
    rows = [
        {
            "prompt_id": "a",
            "prompt": "",
            "candidates": [candidate("g", [1.0, 2.0]), candidate("h", [1.0, math.nan], "s: no; way")],
        },
        {
            "prompt_id": "b",
            "prompt": "",
            "candidates": [candidate("g", [math.nan] * 2, "ValueError: x", None)],
        },
    ]
    table = pa.Table.from_pylist(rows, schema.ranked_schema({"g": "", "h": ""}, {"r": "", "s": ""}))
    pq.write_table(table, place.at("data/x.parquet"))
    found = output.count_failures(place, ["r", "s"])
    assert (found["total"], found["by_model"]) == (2, {"s": 1, "g": 1})
    assert found["examples"] == [
        {"prompt_id": "a", "model": "s", "error": "s: no; way"},
        {"prompt_id": "b", "model": "g", "error": "ValueError: x"},
    ]


def test_which_failures_are_quoted_does_not_depend_on_the_files_names(place: Output) -> None:
    """Ray names files as tasks happen to end."""
    due = schema.ranked_schema({"g": ""}, {"r": ""})
    ids = [f"{n:02}" for n in range(25)]
    rows = [
        {"prompt_id": n, "prompt": n, "candidates": [candidate("g", [math.nan], f"no {n}", None)]}
        for n in ids
    ]
    place.make("data")
    for name, part in (("z", rows[:13]), ("a", rows[13:])):
        pq.write_table(pa.Table.from_pylist(part, due), place.at(f"data/{name}.parquet"))
    found = output.count_failures(place, ["r"])
    assert (found["total"], found["by_model"]) == (25, {"g": 25})
    assert [fault["prompt_id"] for fault in found["examples"]] == ids[:20]


def test_what_a_kill_left_under_a_passing_name_is_no_table(tmp_path: Path) -> None:
    """Half of a file that was being written: counting failures read it, and the job could not be ended any more."""
    place = output.open_output(str(tmp_path / "o"), in_job=False)
    data = Path(place.make("data"))
    pq.write_table(
        pa.table({"prompt_id": ["a"], "candidates": pa.array([[]], pa.list_(schema.CANDIDATE_TYPE))}),
        data / "1.parquet",
    )
    for name in ("2.parquet.tmp", "3.pending.parquet"):
        (data / name).write_bytes((data / "1.parquet").read_bytes()[:40])
    assert place.tables("data") == [str(data / "1.parquet")]
    assert output.finished_ids(place, "data") == ["a"]
    assert output.count_failures(place, ["r"])["total"] == 0


def written(place: Output, name: str, *ids: str) -> tuple[Path, Path]:
    """A file of rows and the note that they are finished, as Ray Data writes them."""
    data, notes = Path(place.make("data")), Path(place.make("_work", "notes"))
    for file in (data / f"{name}-0.parquet", notes / f"{name}.parquet"):
        pq.write_table(pa.table({"prompt_id": list(ids)}), file)
    return data / f"{name}-0.parquet", notes / f"{name}.parquet"


@pytest.mark.parametrize("length", [0, 3, 4, 200])
@pytest.mark.parametrize("cut", [0, 1])
def test_rows_whose_file_or_note_a_power_cut_shortened_are_to_be_made_again(
    place: Output, cut: int, length: int
) -> None:
    whole, half = written(place, "x_0", "a"), written(place, "x_1", "b")
    os.truncate(half[cut], length)
    assert output.mended_ids(place, ("data",), ("_work", "notes")) == ["a"]
    assert [file.exists() for file in (*whole, half[1])] == [True, True, False]
    assert half[0].exists() == (cut == 1), "whole rows stay; made again, they are found to be repeats"
    assert output.finished_ids(place, "data") == (["a", "b"] if cut == 1 else ["a"])


def test_a_note_that_a_store_has_under_both_names_is_one(place: Output) -> None:
    """A store copies and then removes; Ray Data would remove the rows of a pending note, and keep them as finished."""
    above, _, name = place.path.rpartition("/")
    store_ = replace(
        place, fs=pafs.SubTreeFileSystem(above, pafs.LocalFileSystem()), path=name
    )  # as a store's
    (file, note), _, gone = (written(place, name, name[-1]) for name in ("x_0", "x_1", "x_2"))
    pending = note.with_name("x_0.pending.parquet")
    pending.write_bytes(note.read_bytes())
    other = note.with_name("x_3.pending.parquet")
    other.write_bytes(note.read_bytes())
    gone[0].unlink()  # as Ray Data left it, where it met both before
    assert sorted(output.mended_ids(store_, ("data",), ("_work", "notes"))) == ["0", "1"]
    found = [each.exists() for each in (file, note, pending, other, gone[1])]
    assert found == [True, True, False, True, False], "what is pending alone is Ray Data's"


def test_half_a_file_without_a_note_is_still_being_written(place: Output) -> None:
    """A task of a killed driver writes on for a second: its file is its own."""
    file, note = written(place, "x_1", "b")
    note.rename(note.with_name("x_1.pending.parquet"))
    os.truncate(file, 40)
    assert output.mended_ids(place, ("data",), ("_work", "notes")) == []
    assert file.exists()


def test_a_row_whose_file_a_power_cut_took_whole_is_to_be_made_again(place: Output) -> None:
    """Its note came to the disk, and the file's name did not."""
    whole, (file, note) = written(place, "x_0", "a"), written(place, "x_1", "b")
    file.unlink()
    assert output.mended_ids(place, ("data",), ("_work", "notes")) == ["a"]
    assert [each.exists() for each in (*whole, note)] == [True, True, False]


@pytest.mark.parametrize("noted", [True, False])
def test_what_a_power_cut_took_of_what_was_finished_is_lost_and_the_rest_is_not(
    place: Output, noted: bool
) -> None:
    """Nobody is at work there, so half a file is half for good, whether or not its note is left."""
    whole, half, by_note = (written(place, f"x_{n}", name) for n, name in enumerate("abc"))
    os.truncate(half[0], 40)
    os.truncate(by_note[1], 40)
    if not noted:
        half[1].unlink()
    assert output.lost_ids(place, ["a", "b", "c"], ("data",), ("_work", "notes")) == ["b"]
    assert [file.exists() for file in (*whole, *half, *by_note)] == [True, True, False, False, True, False]
    assert output.lost_ids(place, ["a", "c"], ("data",), ("_work", "notes")) == []


@pytest.mark.parametrize("length", [0, 40, None])
def test_staged_prompts_that_a_power_cut_shortened_are_staged_again(
    place: Output, length: int | None
) -> None:
    claim(place, settings())
    ids = output.stage_prompts(place, prompts(*"abcdef"), rows_per_block=3)
    file = Path(place.at("_work", "prompts", "000001.parquet"))
    if length is None:
        file.unlink()
    else:
        os.truncate(file, length)
    assert output.stage_prompts(place, prompts(*"abcdef"), rows_per_block=2) == ids
    assert output.finished_ids(place, "_work", "prompts") == ids
    assert [pq.read_metadata(path).num_rows for path in place.tables("_work", "prompts")] == [2, 2, 2]


def test_prompts_that_are_drawn_again_stand_apart_with_all_their_columns(place: Output) -> None:
    claim(place, settings())
    more = {"place": pa.array([1, 2, 3, 4])}
    ids = output.stage_prompts(place, prompts(*"abcd"), 2, "elsewhere", more)
    output.stage_again(place, ids[:1])
    output.stage_again(place, ids[2:3])
    (path,) = place.tables("_work", "again", "prompts")
    (row,) = pq.read_table(path).to_pylist()
    assert row["prompt_id"] == ids[2]
    assert row["place"] == dict(zip("abcd", (1, 2, 3, 4), strict=True))[row["prompt"]]
    assert output.finished_ids(place, "_work", "prompts") == ids
