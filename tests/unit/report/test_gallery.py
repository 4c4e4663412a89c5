"""A dataset's rows are found by what is in them, and each picture is its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_dataset

from rankray import schema, store
from rankray.config import ConfigError
from rankray.report.gallery import Gallery, Query, open_gallery


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return open_gallery(small_dataset.write(tmp_path / "d"))


def found(gallery: Gallery, **asked: str | bool) -> str:
    return "".join(gallery.row(n)["prompt"] for n in gallery.find(Query(**asked)).tolist())


def test_rows_are_found(gallery: Gallery) -> None:
    """Unanimity is (1/3 + 1/3 + 1) / 3 in a, (1 + 1 + 0) / 3 in b, 0 in c."""
    assert found(gallery) == "abc"
    assert found(gallery, text="B") == "b"
    assert found(gallery, text=schema.prompt_id("c")) == "c"
    assert found(gallery, text="a b") == ""
    assert found(gallery, failed=True) == "bc"
    # 0 is first in a and, all being equal, in c; in b 1 and 2 are level, and 1 comes first. All three are by "one".
    assert found(gallery, first="one") == "abc"
    assert found(gallery, first="two") == found(gallery, first="nobody") == ""
    assert found(gallery, order="split") == "cab"
    assert found(gallery, order="agreed") == "bac"
    assert found(gallery, order="prompt") == "abc"
    assert (found(gallery, mind="split"), found(gallery, mind="one")) == ("c", "")


def test_each_picture_is_its_own(gallery: Gallery) -> None:
    """In three row groups of two files."""
    for n, prompt in enumerate("abc"):
        for k in range(3):
            if (prompt, k) != ("c", 2):
                assert gallery.picture(n, k) == small_dataset.picture(prompt, k)
    with pytest.raises(ValueError, match="no picture"):
        gallery.picture(2, 2)
    assert gallery.thumbnail(0, 0) == ("image/png", small_dataset.picture("a", 0))


def test_pictures_beside_the_rows_are_found_where_the_dataset_is_now(tmp_path: Path) -> None:
    path = Path(small_dataset.write(tmp_path / "d"))
    (path / "images").mkdir()
    for file in (path / "data").iterdir():
        table = pq.read_table(file)
        rows = table.to_pylist()
        for row in rows:
            for k, candidate in enumerate(row["candidates"]):
                if candidate["image"] is not None:
                    name = f"images/{row['prompt']}{k}.png"
                    (path / name).write_bytes(candidate["image"]["bytes"])
                    candidate["image"] = {"bytes": None, "path": name}
        pq.write_table(type(table).from_pylist(rows, table.schema), file)
    moved = path.rename(tmp_path / "moved")
    assert open_gallery(str(moved)).picture(1, 2) == small_dataset.picture("b", 2)


def test_a_row_group_that_cannot_be_read_is_read_again(gallery: Gallery, tmp_path: Path) -> None:
    file = tmp_path / "d" / "data" / "1.parquet"
    away = file.rename(tmp_path / "away")
    with pytest.raises(OSError, match=r"1\.parquet"):
        gallery.picture(2, 0)
    away.rename(file)
    assert gallery.picture(2, 0) == small_dataset.picture("c", 0)


def test_an_evaluations_models_are_ranked_among_each_other(tmp_path: Path) -> None:
    """Two models over one list, whose second draws the first's pictures of c worse, by r, s and t."""
    for name in ("old", "new"):
        path = tmp_path / "sets" / name / "list"
        small_dataset.write(path)
        if name == "new":
            for file in (path / "data").iterdir():
                table = pq.read_table(file)
                rows = table.to_pylist()
                for row in rows:
                    for candidate in row["candidates"]:
                        candidate["scores"] = [score - 100 for score in candidate["scores"]]
                pq.write_table(type(table).from_pylist(rows, table.schema), file)
    sets = [{"model": name, "set": "list"} for name in ("old", "new")]
    (tmp_path / "results.json").write_text(json.dumps({"rankray_version": "0", "sets": sets}))
    gallery = open_gallery(str(tmp_path))
    assert gallery.generators == ["old", "new"]
    assert [gallery.row(n)["list"] for n in range(3)] == ["list"] * 3
    row = gallery.row(0)
    assert [c["generator"] for c in row["candidates"]] == ["old"] * 3 + ["new"] * 3
    ranks = np.array([c["rank"] for c in row["candidates"]])
    assert set(ranks[:3]) == {1, 2, 3}
    assert set(ranks[3:]) == {4, 5, 6}
    assert gallery.picture(0, 4) == small_dataset.picture("a", 1)
    assert found(gallery, first="new") == ""


def test_what_is_neither_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no dataset there"):
        open_gallery(str(tmp_path))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be looked at"):
        open_gallery(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be looked at"):
        open_gallery("nowhere://bucket/name")


def test_imported_pairs_have_two_candidates_of_any_models(tmp_path: Path) -> None:
    path = small_dataset.write(tmp_path / "d")
    table = pq.read_table(f"{path}/data/1.parquet")
    rows = table.to_pylist()
    rows[0]["candidates"] = rows[0]["candidates"][:2]
    pq.write_table(type(table).from_pylist(rows, table.schema), f"{path}/data/1.parquet")
    gallery = open_gallery(path)
    assert np.diff(gallery.bounds).tolist() == [3, 3, 2]
    assert gallery.picture(2, 1) == small_dataset.picture("c", 1)
    assert store.read(path).files == tuple(sorted(store.read(path).files))
