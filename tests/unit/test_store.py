"""A dataset that is right passes; change one thing, and it is named."""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import small_dataset
from PIL import Image

from rankray import ranking, schema, store
from rankray.data import convert, rerank
from rankray.report.dataset import write_report
from rankray.store import DatasetError

SEED = 3
SLOTS = [("one", 0), ("one", 1), ("two", 0)]
Rows = list[dict[str, Any]]


def png(width: int = 4, height: int = 2) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def good_rows() -> Rows:
    """Two prompts; the last candidate of the second has no image, and reward s failed for its first."""
    table = {"a": [[1, 9], [2, 5], [3, 7]], "b": [[0.5, np.nan], [0.25, 1], [np.nan, np.nan]]}
    rows = []
    for prompt, values in table.items():
        scores = np.array(values, np.float32)
        phi = ranking.win_probability(scores)
        ranks = ranking.rank(phi)
        row_id = schema.prompt_id(prompt)
        candidates = []
        for i, (name, sample) in enumerate(SLOTS):
            failed = prompt == "b" and i == 2
            candidates.append(
                {
                    "generator": name,
                    "seed": schema.candidate_seed(SEED, row_id, name, sample),
                    "image": None if failed else {"bytes": png(), "path": None},
                    "width": None if failed else 4,
                    "height": None if failed else 2,
                    "scores": scores[i].tolist(),
                    "win_probability": phi[i],
                    "rank": int(ranks[i]),
                    "error": "ValueError: no" if prompt == "b" and i != 1 else None,
                }
            )
        rows.append({"prompt_id": row_id, "prompt": prompt, "candidates": candidates})
    return rows


def good_info() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "seed": SEED,
        "generators": [
            {"name": "one", "revision": "r1", "samples": 2},
            {"name": "two", "revision": "r2", "samples": 1},
        ],
        "rewards": [{"name": "r", "revision": "x"}, {"name": "s", "revision": "y"}],
        "rows": 2,
        "candidates": 6,
        "images": 5,
        "failures": {"total": 2},
    }


def write(path: Path, rows: Rows, info: dict[str, Any], names: dict[str, str] | None = None) -> str:
    (path / "data").mkdir(parents=True)
    due = schema.ranked_schema(names or {"one": "r1", "two": "r2"}, {"r": "x", "s": "y"})
    for i, row in enumerate(rows):
        pq.write_table(pa.Table.from_pylist([row], due), path / "data" / f"{i}.parquet")
    (path / "dataset.json").write_text(json.dumps(info))
    return str(path)


def test_a_good_dataset(tmp_path: Path) -> None:
    path = write(tmp_path / "o", good_rows(), good_info())
    assert store.validate(path) == store.Validation(rows=2, candidates=6, images=5, failures=2)
    assert store.validate(f"file://{path}").rows == 2
    dataset = store.read(path)
    assert dataset.info == good_info()
    (first, _) = dataset.rows()
    assert "image" not in first["candidates"][0]
    assert first["candidates"][0]["scores"] == [1.0, 9.0]
    assert next(dataset.rows(images=True))["candidates"][0]["image"]["bytes"] == png()


def candidate(rows: Rows, row: int = 0, at: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = rows[row]["candidates"][at]
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, info: rows.append(rows[0]), "stands twice"),
        (lambda rows, info: rows[0].update(prompt="other"), "is not the hash of the prompt 'other'"),
        (lambda rows, info: rows[0]["candidates"].pop(), r"candidates of \['one', 'one'\], due are"),
        (lambda rows, info: rows[0]["candidates"].reverse(), r"candidates of \['two', 'one', 'one'\]"),
        (lambda rows, info: candidate(rows).update(seed=7), "one: seed 7, due is"),
        (lambda rows, info: candidate(rows).update(scores=[1.0]), "one: 1 scores for 2 rewards"),
        (lambda rows, info: candidate(rows).update(win_probability=0.9), r"win_probability \[0\.8"),
        (lambda rows, info: candidate(rows).update(rank=3), r"rank \[3, .*\], the scores make it"),
        (lambda rows, info: candidate(rows).update(width=5), "the image is 4x2, stated are 5x2"),
        (lambda rows, info: candidate(rows)["image"].update(bytes=png()[:40]), "the image cannot be read"),
        (
            lambda rows, info: candidate(rows)["image"].update(bytes=None, path="/no/such.png"),
            "the image cannot be read",
        ),
        (
            lambda rows, info: candidate(rows, 1, 0).update(error=None),
            "a score is NaN, and no error says why",
        ),
        (lambda rows, info: candidate(rows, 1, 2).update(rank=1), "there is no image, but a rank or a score"),
        (lambda rows, info: candidate(rows, 1, 2).update(width=4), "there is no image, but a size"),
        (lambda rows, info: info.update(rows=3), "rows 3, the files hold 2"),
        (lambda rows, info: info.update(images=6), "images 6, the files hold 5"),
        (lambda rows, info: info["failures"].update(total=0), "0 failures, the files hold 2"),
        (lambda rows, info: info.update(schema_version=2), "schema version 2, this rankray reads 1"),
        (
            lambda rows, info: info["rewards"][0].update(revision="z"),
            "generators and rewards of the file are",
        ),
    ],
)
def test_one_change_is_named(
    tmp_path: Path, change: Callable[[Rows, dict[str, Any]], None], message: str
) -> None:
    rows, info = good_rows(), good_info()
    change(rows, info)
    with pytest.raises(DatasetError, match=message):
        store.validate(write(tmp_path / "o", rows, info))


def test_errors_and_scores_go_together(tmp_path: Path) -> None:
    """Of this dataset's one failed score the error is another reward's."""
    path = small_dataset.write(tmp_path / "d")
    assert store.validate(path).failures == 2
    file = tmp_path / "d" / "data" / "0.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[1]["candidates"][0]["score_errors"] = ["too dark", None, None]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    with pytest.raises(
        store.DatasetError, match=r"score_errors \['too dark', None, None\] do not go together"
    ):
        store.validate(path)


def test_many_faults_are_cut_at_twenty(tmp_path: Path) -> None:
    rows = good_rows()
    with pytest.raises(DatasetError) as caught:
        store.validate(write(tmp_path / "o", rows * 15, good_info()))
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[-1].startswith("and ")


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "o", good_rows(), good_info())
    pq.write_table(pa.table({"x": [1]}), tmp_path / "o" / "data" / "z.parquet")
    with pytest.raises(DatasetError, match=r"z\.parquet: no rankray metadata"):
        store.validate(path)


def test_unfinished_and_missing_datasets(tmp_path: Path) -> None:
    path = write(tmp_path / "o", good_rows(), good_info())
    assert store.complete(path)
    (tmp_path / "o" / "dataset.json").unlink()
    assert not store.complete(path)
    with pytest.raises(
        DatasetError, match=r"2 data files, but no dataset\.json: the job is not finished; run it again"
    ):
        store.read(path)
    with pytest.raises(DatasetError, match="no dataset there"):
        store.validate(str(tmp_path / "nothing"))


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    fs, place = store.filesystem(str(tmp_path))
    store.write_json(f"{place}/x.json", {"a": 1}, fs)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(f"{place}/x.json", {"a": float("nan")}, fs)
    assert store.read_json(f"{place}/x.json", fs) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def colours(dataset: Path | str) -> list[tuple[int, ...]]:
    """Of every picture its first pixel."""
    found = []
    for row in store.read(str(dataset)).rows(images=True):
        for candidate in row["candidates"]:
            if candidate["image"] is not None:
                with Image.open(io.BytesIO(store.image_bytes(candidate["image"]))) as picture:
                    found.append(picture.getpixel((0, 0)))
    return found


@pytest.mark.parametrize("former", [True, False])
def test_a_dataset_that_was_moved_keeps_its_pictures(
    tmp_path: Path, former: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    due = colours(small_dataset.write(tmp_path / "inline"))
    small_dataset.write(tmp_path / "first")
    small_dataset.as_files(tmp_path / "first", str(tmp_path / "first") if former else None)
    assert colours(tmp_path / "first") == due
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first").rename(tmp_path / "second")
    for place in ("second", str(tmp_path / "second"), f"file://{tmp_path}/second/"):
        assert store.validate(place) == store.Validation(3, 9, 8, 2)
        assert colours(place) == due
        assert store.missing_images(store.read(place)) == []
    convert.run("second", str(tmp_path / "pairs"), "all-pairs", lambda line: None)
    pairs = pq.read_table(tmp_path / "pairs" / "data").to_pylist()
    assert {pair["chosen"]["bytes"] for pair in pairs} <= {
        small_dataset.picture(p, k) for p in "abc" for k in range(3)
    }
    write_report("second", store.read("second").info)
    page = Path("second", "report.html").read_text("utf-8")
    assert page.count("data:image/png") == 8
    assert "cannot be read" not in page
    rerank.run("second", str(tmp_path / "third"), rerank.Reranking(rewards=["s"]), lambda line: None)
    shutil.rmtree(tmp_path / "second" / store.IMAGES)
    (tmp_path / "third").rename(tmp_path / "fourth")
    assert store.validate(str(tmp_path / "fourth")).images == 8
    assert colours(tmp_path / "fourth") == due
    assert len(store.missing_images(store.read("second"))) == 8
    with pytest.raises(store.DatasetError, match="second: 8 images are missing, the first is"):
        convert.run("second", str(tmp_path / "none"), "pairs", lambda line: None)


def saved(picture: Image.Image, form: str = "PNG", **options: object) -> dict[str, object]:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def seen(image: dict[str, object]) -> Image.Image:
    with Image.open(io.BytesIO(image["bytes"])) as picture:  # type: ignore[arg-type]
        return store.shown(picture)


def test_a_picture_is_seen_upright() -> None:
    picture = Image.new("RGB", (16, 8), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # it is to be turned by a quarter, clockwise
    for form in ("PNG", "JPEG", "WEBP"):
        image = saved(picture, form, exif=exif)
        assert store.image_size(image) == (8, 16)
        upright = seen(image)
        red, _, blue = upright.getpixel((4, 2))
        assert (red > 200, blue < 50) == (True, True)
        assert upright.getpixel((4, 14))[2] > 200


@pytest.mark.parametrize(
    ("picture", "due"),
    {
        "hidden colour": (Image.new("RGBA", (1, 1), (255, 0, 0, 0)), (255, 255, 255)),
        "half shown": (Image.new("RGBA", (1, 1), (255, 0, 0, 51)), (255, 204, 204)),
        "grey": (Image.new("LA", (1, 1), (0, 0)), (255, 255, 255)),
        "16 bits": (Image.fromarray(np.full((1, 1), 257 * 100, np.uint16)), (100, 100, 100)),
        "16 bits, white": (Image.fromarray(np.full((1, 1), 65535, np.uint16)), (255, 255, 255)),
        "8 bits": (Image.new("L", (1, 1), 7), (7, 7, 7)),
        "1 bit": (Image.new("1", (1, 1), 1), (255, 255, 255)),
    }.values(),
)
def test_a_picture_is_seen_as_a_viewer_shows_it(picture: Image.Image, due: tuple[int, ...]) -> None:
    assert seen(saved(picture)).getpixel((0, 0)) == due


def test_palettes_inks_animations_and_what_has_no_range() -> None:
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([9, 9, 9, 0, 200, 0])
    palette.putpixel((0, 0), 0)
    both = seen(saved(palette, transparency=0))
    assert [both.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 200, 0)]
    keyed = seen(saved(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)))
    assert keyed.getpixel((0, 0)) == (255, 255, 255)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    for form in ("GIF", "WEBP", "PNG"):
        moving = saved(frames[0], form, save_all=True, append_images=frames[1:])
        assert seen(moving).getpixel((4, 4)) == (255, 255, 255)
    ink = seen(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    red, green, _ = ink.getpixel((4, 4))
    assert (red > 250, green < 5) == (True, True)
    for mode in ("F", "I"):
        with pytest.raises(ValueError, match=f"of mode {mode}, whose values have no range"):
            store.image_size(saved(Image.new(mode, (1, 1), 3), "TIFF"))


class Door:
    """A port before an object store, which can be shut, and whose answers can be late by `late_s`."""

    late_s = 0.0

    def __init__(self, store_at: str) -> None:
        host, _, port = store_at.removeprefix("http://").rpartition(":")
        self._behind, self.port = (host, int(port)), 0
        self.open()

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, args=(self._listening,), daemon=True).start()

    def shut(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, behind = listening.accept()[0], socket.create_connection(self._behind)
                threading.Thread(target=self._pump, args=(client, behind), daemon=True).start()
                threading.Thread(target=self._pump, args=(behind, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.late_s if answers else 0.0)
                sink.sendall(data)
        source.close()
        sink.close()


def test_an_object_store_that_takes_its_time_is_no_fault(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself pyarrow gives up after 3 s, as often as it asks."""
    door = Door(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{door.port}")
    fs, place = store.filesystem(f"s3://{bucket}/late.json")
    store.write_json(place, {}, fs)
    door.late_s = 4.5
    assert fs.get_file_info(place).size == 3
    door.shut()


@pytest.mark.slow  # 15 to 30 s: what pyarrow does by itself it does for 6
def test_an_object_store_that_is_away_for_ten_seconds_is_waited_for(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = Door(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{door.port}")
    fs, place = store.filesystem(f"s3://{bucket}/away")
    door.shut()
    timer = threading.Timer(10.0, door.open)
    timer.start()
    begin_s = time.monotonic()
    store.write_json(f"{place}/it.json", {"is": "there"}, fs)
    assert time.monotonic() - begin_s > 9.0
    assert store.read_json(f"{place}/it.json", fs) == {"is": "there"}
    door.shut()


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("trained on", "trained%20on"),
        ("100%", "100%25"),
        ("ü/a[1]", "%C3%BC/a%5B1%5D"),
        ("a b%20c", "a%20b%20c"),
        ("a#b", "a%23b"),  # which pyarrow would take for the key "a"
    ],
)
def test_a_key_that_an_uri_has_to_escape_is_refused_with_how_to_write_it(
    bucket: str, given: str, written: str
) -> None:
    with pytest.raises(
        DatasetError, match=f"^s3://{bucket}/{re.escape(given)}.*; .* ?write s3://{bucket}/{written}$"
    ):
        store.filesystem(f"s3://{bucket}/{given}")
    assert store.filesystem(f"s3://{bucket}/{written}")[1] == f"{bucket}/{unquote(written)}"


def test_a_key_that_an_uri_may_hold_stays_as_it_is(bucket: str) -> None:
    for key in ("a+b", "a&b=c", "a:b", "it's,(a)~b;c!$*@"):
        assert store.filesystem(f"s3://{bucket}/{key}")[1] == f"{bucket}/{key}"


def test_a_store_is_asked_as_often_by_whom_it_is_sent_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied as Ray sends it to the controller of a training and to tasks. At a port that says nothing to anybody."""
    monkeypatch.setattr(store, "S3_ATTEMPTS", 4)
    asked: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def refuse() -> None:
            with contextlib.suppress(OSError):  # the server is closed
                while True:
                    connection, _ = server.accept()
                    asked.append(1)
                    connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        place = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in {**place, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(name, value)
        fs, path = store.filesystem("s3://bucket/key")
        counts = []
        for each in (fs, copy.deepcopy(fs)):
            asked.clear()
            with pytest.raises(OSError, match="AWS Error"):
                each.get_file_info(path)
            counts.append(len(asked))
    assert counts == [4, 4]


def test_one_is_made_ahead_and_no_more() -> None:
    """Files of a hundred megabytes, and their pictures' pixels: one at work, one waiting."""
    begun = {n: threading.Event() for n in range(5)}

    def make(n: int) -> int:
        begun[n].set()
        return n * n

    with ThreadPoolExecutor() as pool:
        for n, square in store.one_ahead(make, range(5), pool):
            assert square == n * n
            assert n == 4 or begun[n + 1].wait(10)
            time.sleep(0.01)
            assert [m for m in begun if begun[m].is_set()] == list(range(min(n + 2, 5)))
    with ThreadPoolExecutor() as pool, pytest.raises(ZeroDivisionError):
        list(store.one_ahead(lambda n: 1 // n, [1, 0, 2], pool))


@pytest.mark.parametrize("write", [store.write_bytes, store.put])
def test_a_file_is_on_disk_before_it_has_its_name(
    write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may else keep the name, which was written last, and not what the file holds."""
    synced: list[tuple[int, list[str]]] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, os.listdir(tmp_path)))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write(str(tmp_path / "dataset.json"), b"{}", pafs.LocalFileSystem())
    ((size, names),) = synced
    assert (size, [name.endswith(".tmp") for name in names]) == (2, [True])
    assert (tmp_path / "dataset.json").read_bytes() == b"{}"


def test_an_object_goes_straight_to_its_name(tmp_path: Path) -> None:
    """A store's renaming is a copy and a removal, and its objects are there whole or not at all."""
    file = tmp_path / "picture.png"
    for fs, path, straight in (
        (pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), file.name, True),  # as a store's
        (pafs.LocalFileSystem(), str(file), False),
    ):
        file.write_bytes(b"former")
        before = file.stat().st_ino
        store.put(path, b"png", fs)
        assert (file.read_bytes(), file.stat().st_ino == before) == (b"png", straight)


def test_a_full_disk_keeps_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.put(str(tmp_path / "picture.png"), b"png", pafs.LocalFileSystem())
    assert not os.listdir(tmp_path)
