"""Human choices become rows of two candidates that people compared; what cannot be used is counted."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_dataset
import torch
from PIL import Image

from rankray import commands, schema, store
from rankray.config import ConfigError, build
from rankray.config.rankdpo import RankDPOConfig
from rankray.data import convert, pickapic, rerank
from rankray.data.pickapic import Importing
from rankray.losses import LOSSES, LossInputs
from rankray.rankdpo import job as rankdpo
from rankray.rankdpo.encoding import EncodeActor, EncodeJob


def quiet(line: str) -> None:
    pass


def jpeg(shade: int, size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 20, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def choice(
    caption: str | None, first: int, second: int, label: float = 1.0, **changes: Any
) -> dict[str, Any]:
    """A row as the file has it: `label` is the first picture's."""
    row = {
        "caption": caption,
        "jpg_0": jpeg(first),
        "jpg_1": jpeg(second, (4, 10)),
        "label_0": label,
        "label_1": 1.0 - label,
        "has_label": True,
        "are_different": True,
        "image_0_uid": f"u{first}",
        "image_1_uid": f"u{second}",
        "best_image_uid": f"u{first if label == 1.0 else second}",
        "model_0": "dreamlike",
        "model_1": "sdxl",
        "ranking_id": first,
        "num_example_per_prompt": 1,
    }
    return {**row, **changes}


def write(path: Path, *rows: dict[str, Any], groups: int = 2) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), convert.PICKAPIC_SCHEMA), path, row_group_size=groups)
    return str(path)


ROWS = (
    choice(" a kite\n", 1, 2),
    choice("a kite", 3, 4, 0.0, model_1="dreamlike"),
    choice("a kite", 2, 1, 0.0, jpg_0=jpeg(2, (4, 10)), jpg_1=jpeg(1)),  # the first pair, judged again
    choice("a mill", 5, 6, 0.5),
    choice("a drum", 7, 8, 0.0),
)


def rows(path: Path) -> list[dict[str, Any]]:
    return sorted(
        store.read(str(path)).rows(images=True),
        key=lambda row: (row["prompt"], row["candidates"][0]["width"]),
    )


def test_each_pair_is_a_row_and_ties_are_dropped(tmp_path: Path) -> None:
    source = write(tmp_path / "in" / "0.parquet", *ROWS)
    info = pickapic.run([source], str(tmp_path / "o"), Importing(), quiet)
    assert store.validate(str(tmp_path / "o")) == store.Validation(3, 6, 6, 0)
    drum, *kites = rows(tmp_path / "o")
    assert [drum["prompt"], *(kite["prompt"] for kite in kites)] == ["a drum", "a kite", "a kite"]
    first, second = drum["candidates"]
    assert first["image"]["bytes"] == jpeg(7), "the bytes of the file"
    assert (first["width"], first["height"], second["width"], second["height"]) == (8, 6, 4, 10)
    assert [c["scores"] for c in drum["candidates"]] == [[0.0], [1.0]]
    assert [(c["win_probability"], c["rank"]) for c in drum["candidates"]] == [(0.0, 2), (1.0, 1)]
    assert [(c["generator"], c["seed"]) for c in drum["candidates"]] == [("dreamlike", None), ("sdxl", None)]
    ids = {kite["candidates"][0]["image"]["bytes"]: kite["prompt_id"] for kite in kites}
    assert ids[jpeg(1)] == schema.prompt_id("a kite")
    assert ids[jpeg(3)] == schema.pair_id("a kite", [jpeg(4, (4, 10)), jpeg(3)])
    assert [item["name"] for item in info["generators"]] == ["dreamlike", "sdxl"]
    assert info["imported"]["counts"] == {"read": 5, "kept": 3, "ties": 1, "repeated": 1}
    assert pickapic.left_out(info["imported"]["counts"], "drop") == (
        "1 tied, 1 of captions or pairs that were there already"
    )


def test_one_pair_a_caption_is_the_first_that_can_be_used(tmp_path: Path) -> None:
    broken = choice("a kite", 9, 9, jpg_0=jpeg(9)[:200])
    source = write(tmp_path / "0.parquet", broken, *ROWS)
    info = pickapic.run([source], str(tmp_path / "o"), Importing(pairs="one"), quiet)
    _, kite = rows(tmp_path / "o")
    assert kite["candidates"][0]["image"]["bytes"] == jpeg(1)
    assert kite["prompt_id"] == schema.prompt_id("a kite")
    assert info["imported"]["counts"] == {"read": 6, "kept": 2, "ties": 1, "repeated": 2, "undecodable": 1}
    assert info["prompts"]["duplicates"] == 2
    assert store.validate(str(tmp_path / "o")).rows == 2


def test_half_a_tie_prefers_neither_and_a_choice_is_what_it_was(tmp_path: Path) -> None:
    source = write(tmp_path / "0.parquet", *ROWS)
    pickapic.run([source], str(tmp_path / "o"), Importing(ties="half", pairs="one"), quiet)
    found = {row["prompt"]: [c["win_probability"] for c in row["candidates"]] for row in rows(tmp_path / "o")}
    assert found == {"a drum": [0.0, 1.0], "a kite": [1.0, 0.0], "a mill": [0.5, 0.5]}
    assert store.validate(str(tmp_path / "o")).rows == 3
    info = convert.run(str(tmp_path / "o"), str(tmp_path / "p"), "all-pairs", quiet)
    assert info["pairs"] == 2, "a tie is no pair"


BAD = {
    "empty": [choice(None, 1, 2), choice(" \n", 1, 2)],
    "unlabelled": [choice("a", 1, 2, has_label=False), choice("a", 1, 2, has_label=None)],
    "bad_labels": [
        choice("a", 1, 2, label_1=1.0),
        choice("a", 1, 2, 0.7),
        choice("a", 1, 2, label_0=None),
        choice("a", 1, 2, float("nan")),
    ],
    "same_picture": [choice("a", 1, 2, jpg_1=jpeg(1))],
    "undecodable": [
        choice("a", 1, 2, jpg_1=jpeg(2)[:300]),
        choice("a", 1, 2, jpg_0=None),
        choice("a", 1, 2, jpg_0=b"?"),
    ],
}


def test_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    every = [row for rows_ in BAD.values() for row in rows_]
    source = write(tmp_path / "0.parquet", *every, choice("a fig", 3, 4, model_0=None))
    info = pickapic.run([source], str(tmp_path / "o"), Importing(), quiet)
    due = {reason: len(rows_) for reason, rows_ in BAD.items()}
    assert info["imported"]["counts"] == {"read": len(every) + 1, "kept": 1, **due}
    assert rows(tmp_path / "o")[0]["candidates"][0]["generator"] == "unknown"
    assert store.validate(str(tmp_path / "o")).rows == 1
    alone = write(tmp_path / "1.parquet", *BAD["unlabelled"])
    with pytest.raises(ConfigError, match="no pair of 2 can be used: 2 without a label"):
        pickapic.run([alone], str(tmp_path / "p"), Importing(), quiet)
    assert not store.complete(str(tmp_path / "p"))


def test_inputs_that_are_not_these_columns(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(list(ROWS), convert.PICKAPIC_SCHEMA)
    pq.write_table(table.drop_columns(["jpg_1", "model_0"]), tmp_path / "lacks.parquet")
    words = table.set_column(1, "jpg_0", pa.array(["x"] * len(ROWS)))
    pq.write_table(words, tmp_path / "words.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "empty").mkdir()
    good = write(tmp_path / "good.parquet", *ROWS)
    cases = {
        "lacks.parquet": "lacks jpg_1, model_0; Pick-a-Pic v2's columns are due: caption, jpg_0",
        "words.parquet": "jpg_0 is string; binary is due",
        "text.parquet": "is no Parquet file",
        "empty": "no Parquet file is there; give files, or a directory of them",
        "nowhere": "is not there; look at how it is written",
    }
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            pickapic.run([good, str(tmp_path / name)], str(tmp_path / "o"), Importing(), quiet)
    for how, message in (
        (Importing(ties="halve"), "ties 'halve' .*; allowed: drop, half"),
        (Importing(pairs="two"), "pairs 'two'.*; allowed: all, one"),
    ):
        with pytest.raises(ConfigError, match=message):
            pickapic.run([good], str(tmp_path / "o"), how, quiet)
    assert not (tmp_path / "o").exists(), "nothing is written"


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    source = Path(write(tmp_path / "0.parquet", *ROWS, groups=1))
    data = bytearray(source.read_bytes())
    at = data.index(jpeg(7)[:40]) - 30  # a page's header, and nothing of the two first row groups
    data[at : at + 25] = b"\xff" * 25
    source.write_bytes(data)
    with pytest.raises(ConfigError, match=r"0\.parquet cannot be read beyond row \d"):
        pickapic.run([str(source)], str(tmp_path / "o"), Importing(), quiet)


def test_a_killed_run_goes_on_with_the_file_it_was_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "0.parquet", *ROWS[:2])
    write(tmp_path / "in" / "1.parquet", ROWS[2], ROWS[4], choice("a kite", 11, 12))
    whole, other = tmp_path / "whole", tmp_path / "other"
    monkeypatch.setattr(pickapic, "ROWS_PER_FILE", 1)
    due = pickapic.run([str(tmp_path / "in")], str(whole), Importing(), quiet)

    class Killed(BaseException):
        pass

    made = pickapic._row

    def killed(item: dict[str, Any], *rest: Any) -> dict[str, Any]:
        if item["jpg_0"] == jpeg(11):
            raise Killed
        return made(item, *rest)

    monkeypatch.setattr(pickapic, "_row", killed)
    with pytest.raises(Killed):
        pickapic.run([str(tmp_path / "in")], str(other), Importing(), quiet)
    assert not store.complete(str(other))
    with pytest.raises(
        ConfigError, match=r"was begun with another configuration(.*\n)+.*import\.ties: 'drop' there"
    ):
        pickapic.run([str(tmp_path / "in")], str(other), Importing(ties="half"), quiet)
    monkeypatch.setattr(pickapic, "_row", made)
    first = next(iter(sorted((other / "data").iterdir())))
    before = first.stat().st_mtime_ns
    info = pickapic.run([str(tmp_path / "in")], str(other), Importing(), quiet)
    assert first.stat().st_mtime_ns == before, "the first file's rows are kept"
    assert rows(other) == rows(whole)
    assert info["imported"] == due["imported"]
    assert info["prompts"]["sha256"] == due["prompts"]["sha256"]
    names = [sorted(file.name for file in (place / "data").iterdir()) for place in (whole, other)]
    assert (
        names[0]
        == names[1]
        == ["00000-00000.parquet", "00000-00001.parquet", "00001-00000.parquet", "00001-00001.parquet"]
    )
    said: list[str] = []
    pickapic.run([str(tmp_path / "in")], str(other), Importing(), said.append)
    assert said == [f"{other} is complete already; nothing to do"]


def test_there_and_back(tmp_path: Path) -> None:
    """What `convert` writes under these columns comes back as its best and worst; and once more as it was."""
    source = small_dataset.write(tmp_path / "d")
    convert.run(source, str(tmp_path / "pairs"), "pickapic", quiet)
    pickapic.run([str(tmp_path / "pairs" / "data")], str(tmp_path / "o"), Importing(), quiet)
    found = rows(tmp_path / "o")
    assert [row["prompt"] for row in found] == ["a", "b"]
    for row, (best, worst) in zip(found, ((0, 2), (1, 0)), strict=True):
        ranked = sorted(row["candidates"], key=lambda c: c["rank"])
        pictures = [small_dataset.picture(row["prompt"], k) for k in (best, worst)]
        assert [c["image"]["bytes"] for c in ranked] == pictures
        assert [c["generator"] for c in ranked] == [small_dataset.SLOTS[k][0] for k in (best, worst)]
    convert.run(str(tmp_path / "o"), str(tmp_path / "again"), "pickapic", quiet)
    pickapic.run([str(tmp_path / "again" / "data")], str(tmp_path / "o2"), Importing(), quiet)
    flat = [
        {
            (row["prompt"], c["image"]["bytes"], c["rank"])
            for row in rows(tmp_path / name)
            for c in row["candidates"]
        }
        for name in ("o", "o2")
    ]
    assert flat[0] == flat[1]
    table = pq.read_table(tmp_path / "again" / "data").to_pylist()
    assert all(row["image_0_uid"] != row["image_1_uid"] for row in table)


@pytest.mark.parametrize(("to", "due"), [("pairs", 2), ("all-pairs", 4)])
def test_chosen_and_rejected_come_back(tmp_path: Path, to: str, due: int) -> None:
    source = small_dataset.write(tmp_path / "d")
    convert.run(source, str(tmp_path / "pairs"), to, quiet)
    info = pickapic.run([str(tmp_path / "pairs" / "data")], str(tmp_path / "o"), Importing(), quiet)
    assert info["imported"]["counts"] == {"read": due, "kept": due}
    assert [item["name"] for item in info["generators"]] == ["one", "two"]
    assert store.validate(str(tmp_path / "o")).rows == due
    found = {
        (row["prompt"], *(c["image"]["bytes"] for c in sorted(row["candidates"], key=lambda c: c["rank"])))
        for row in rows(tmp_path / "o")
    }
    written = pq.read_table(tmp_path / "pairs" / "data").to_pylist()
    assert found == {(row["prompt"], row["chosen"]["bytes"], row["rejected"]["bytes"]) for row in written}
    table = pq.read_table(tmp_path / "pairs" / "data").drop_columns(
        ["chosen_generator", "rejected_generator"]
    )
    pq.write_table(table, tmp_path / "bare.parquet")
    bare = pickapic.run([str(tmp_path / "bare.parquet")], str(tmp_path / "b"), Importing(), quiet)
    assert [item["name"] for item in bare["generators"]] == ["unknown"]
    words = table.set_column(2, "chosen", pa.array(["x"] * len(table)))
    pq.write_table(words, tmp_path / "words.parquet")
    with pytest.raises(ConfigError, match="chosen is string; a picture with its bytes is due"):
        pickapic.run([str(tmp_path / "words.parquet")], str(tmp_path / "w"), Importing(), quiet)


def test_rankdpo_takes_it_and_rerank_knows_it(tmp_path: Path) -> None:
    pickapic.run([write(tmp_path / "0.parquet", *ROWS)], str(tmp_path / "o"), Importing(ties="half"), quiet)
    settings: dict[str, Any] = {
        "dataset": str(tmp_path / "o"),
        "output": "/o",
        "model": {"model": "shapes-sdxl"},
    }
    settings["validation"] = {"share": 0.0}  # four prompts
    plan = rankdpo.check(
        build(RankDPOConfig, {**settings, "objective": {"name": "weighted_sft", "reward": "human"}})
    )
    assert plan.reward == 0
    rerank.run(str(tmp_path / "o"), str(tmp_path / "r"), rerank.Reranking(), quiet)
    assert store.validate(str(tmp_path / "r")).rows == 4


def test_what_training_sees_of_it(tmp_path: Path) -> None:
    """Encoded by the class that a job's actors have, a row is one pair, a tie none, and the loss has a gradient."""
    pickapic.run([write(tmp_path / "0.parquet", *ROWS)], str(tmp_path / "o"), Importing(ties="half"), quiet)
    settings: dict[str, Any] = {
        "dataset": str(tmp_path / "o"),
        "output": "/o",
        "model": {"model": "shapes-sdxl"},
    }
    settings["validation"] = {"share": 0.0}  # four prompts
    plan = rankdpo.check(build(RankDPOConfig, settings))
    job = EncodeJob(plan.spec, "cpu", "float32", "float32", 4, str(tmp_path / "encoded"))
    made = rows(tmp_path / "o")
    encoded = EncodeActor(job).rows(made)
    assert [(row["prompt"], one.rank.tolist()) for row, one in zip(made, encoded, strict=True)] == [
        ("a drum", [2, 1]),
        ("a kite", [1, 2]),
        ("a kite", [2, 1]),
        ("a mill", [1, 2]),
    ]
    assert len({row.prompt_id for row in encoded}) == 4, "other noise for each"
    phi = torch.from_numpy(np.stack([row.win_probability for row in encoded]))
    rank = torch.from_numpy(np.stack([row.rank for row in encoded]))
    error = torch.full((4, 2), 0.5, requires_grad=True)
    inputs = LossInputs(error, torch.full((4, 2), 0.5), phi, rank, rank > 0)
    LOSSES["rank_dpo"](inputs, beta=10.0).sum().backward()
    assert error.grad is not None
    weight = 1.0 / math.log(2) - 1.0 / math.log(3)  # of a pair of gains 1 and 0
    due = [[-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]]
    assert torch.allclose(error.grad, 5.0 * weight * torch.tensor(due), atol=1e-5)


def test_validate_sees_what_was_changed(tmp_path: Path) -> None:
    pickapic.run([write(tmp_path / "0.parquet", *ROWS)], str(tmp_path / "o"), Importing(), quiet)
    file = next((tmp_path / "o" / "data").iterdir())
    table = pq.read_table(file)
    changed = table.to_pylist()
    changed[1]["prompt_id"] = schema.prompt_id("another")
    changed[0]["candidates"][0]["generator"] = "sd1"
    changed[2]["candidates"][1]["seed"] = 5
    pq.write_table(pa.Table.from_pylist(changed, table.schema), file)
    with pytest.raises(store.DatasetError) as error:
        store.validate(str(tmp_path / "o"))
    text = str(error.value)
    assert "prompt_id is not the hash of the prompt 'a kite'" in text
    assert "candidates of ['sd1', 'sdxl'], due are [\"one of ['dreamlike', 'sdxl']\", 'sdxl']" in text
    assert "sdxl: seed 5, due is None" in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, place = write(tmp_path / "0.parquet", *ROWS), str(tmp_path / "o")
    assert commands.main(["import", source, "--output", place, "--pairs", "one"]) == 0
    said = capsys.readouterr().out
    assert "2 of 5 pairs; left out: 1 tied, 2 of captions or pairs that were there already" in said
    assert (tmp_path / "o" / "report.html").stat().st_size > 10_000
    assert commands.main(["validate", place]) == 0
    assert commands.main(["import", source, "--output", place, "--ties", "all"]) == 2
    assert "rankray: ties 'all'" in capsys.readouterr().err
