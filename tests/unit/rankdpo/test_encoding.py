"""The reference stage: which errors it computes, and that those beside a prompt do not change them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_dataset
import torch
from diffusers import DiffusionPipeline

from rankray import config, store
from rankray.config.rankdpo import EncodingConfig, RankDPOConfig
from rankray.models.generators import GENERATORS
from rankray.rankdpo import batches
from rankray.rankdpo.encoded import decoded_row, layout_of
from rankray.rankdpo.encoding import EncodeActor, EncodeJob, ReferenceActor, ReferenceJob, encoded_uri
from rankray.rankdpo.feed import Reads
from rankray.rankdpo.labels import Labelling
from rankray.shapes import pipeline_dir

SPEC = GENERATORS["shapes-sdxl"]
SETTINGS = {
    "dataset": "/d",
    "output": "/o",
    "model": {"model": "shapes-sdxl"},
    "noise": {"prompt_dropout": 0.3},
}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pa.Table]:
    root = tmp_path_factory.mktemp("encoded")
    place = small_dataset.write(root / "dataset")
    rows = pq.read_table(f"{place}/data").to_pylist()
    table = EncodeActor(EncodeJob(SPEC, "cpu", "float32", "float32", 4, str(root / "set"))).encode(rows)
    return str(root / "set"), table


def test_reencoded_pictures_have_been_through_the_autoencoder_once_more(
    encoded: tuple[str, pa.Table], tmp_path: Path
) -> None:
    place = small_dataset.write(tmp_path / "dataset")
    rows = pq.read_table(f"{place}/data").to_pylist()
    job = EncodeJob(SPEC, "cpu", "float32", "float32", 4, str(tmp_path / "set"), reencode=True)
    table, layout = EncodeActor(job).encode(rows), layout_of(encoded[1].schema)
    pipe = DiffusionPipeline.from_pretrained(pipeline_dir("shapes-sdxl"), dtype=torch.float32)
    for stored, again in zip(encoded[1].to_pylist(), table.to_pylist(), strict=True):
        once, twice = decoded_row(stored, layout), decoded_row(again, layout)
        assert once.rank.tolist() == twice.rank.tolist()
        there = [pair is not None for pair in stored["latents"]]
        with (
            torch.no_grad()
        ):  # by diffusers' own pieces: what is decoded, rounded to bytes, and encoded again
            latents = torch.from_numpy(once.mean[there]) / pipe.vae.config.scaling_factor
            pictures = pipe.image_processor.postprocess(pipe.vae.decode(latents).sample)
            due = pipe.vae.encode(pipe.image_processor.preprocess(pictures)).latent_dist.mean
        np.testing.assert_allclose(
            twice.mean[there], due * pipe.vae.config.scaling_factor, atol=5e-3
        )  # a byte may round otherwise
        assert np.abs(twice.mean[there] - once.mean[there]).max() > 0.05


def test_reencoded_pictures_are_a_set_of_their_own(tmp_path: Path) -> None:
    dataset = store.read(small_dataset.write(tmp_path / "dataset"))
    dataset.info["prompts"]["sha256"] = "p"
    plain = EncodeJob(SPEC, "cpu", "float32", "float32", 4, "")
    found = {
        encoded_uri(dataset, replace(plain, reencode=again, batch_size=size), "r", EncodingConfig())
        for again in (False, True)
        for size in (4, 8)
    }
    assert len(found) == 2


def errors(
    place: str, table: pa.Table, reads: Reads, at_once: int = 8, labelling: Labelling | None = None
) -> dict[str, list[list[float]]]:
    settings = config.build(RankDPOConfig, SETTINGS)
    actor = ReferenceActor(ReferenceJob(SPEC, "cpu", settings, place, reads, labelling))
    actor._at_once = at_once
    return dict(zip(*(actor(table)[name].to_pylist() for name in ("prompt_id", "ref_error")), strict=True))


def test_only_what_will_be_read_is_computed(encoded: tuple[str, pa.Table]) -> None:
    place, table = encoded
    ids = table["prompt_id"].to_pylist()
    found = errors(place, table, Reads(2, frozenset(ids[:1])))
    assert [len(found[name]) for name in ids] == [3, *[2] * (len(ids) - 1)]
    assert errors(place, table, Reads(0, frozenset()))[ids[0]] == []


def test_errors_do_not_depend_on_what_stands_beside_a_prompt(encoded: tuple[str, pa.Table]) -> None:
    place, table = encoded
    alone, three, all_ = (errors(place, table, Reads(3, frozenset()), at_once) for at_once in (1, 3, 64))
    for name, due in alone.items():
        np.testing.assert_allclose(three[name], due, rtol=2e-6)
        np.testing.assert_allclose(all_[name], due, rtol=2e-6)
        assert due[0] != due[1], "each epoch has its own noise"
        unranked = [k for k, value in enumerate(due[0]) if value == 0.0]
        rank = next(row["rank"] for row in table.to_pylist() if row["prompt_id"] == name)
        assert unranked == [k for k, value in enumerate(rank) if value == 0]


def test_errors_do_not_depend_on_what_a_labelling_s_rewards_say(encoded: tuple[str, pa.Table]) -> None:
    """A candidate that one labelling's reward has no score of is ranked by another's, which shares the errors."""
    place, table = encoded
    rows = table.to_pylist()
    for row in rows:
        row["scores"][0] = [float("nan")] * len(row["scores"][0])
    unscored = pa.Table.from_pylist(rows, schema=table.schema)
    everybody = Labelling((0, 1, 2), (0,), "win_probability", 1.0, 0)
    due, ahead = errors(place, table, Reads(1, frozenset())), Reads(1, frozenset())
    found = errors(place, unscored, ahead, labelling=everybody)
    pair = errors(place, unscored, ahead, labelling=replace(everybody, candidates=(0, 2)))
    for name in due:
        np.testing.assert_allclose(found[name], due[name], rtol=2e-6)
        np.testing.assert_allclose(np.array(pair[name])[:, [0, 2]], np.array(due[name])[:, [0, 2]], rtol=2e-6)
        assert not np.array(pair[name])[:, 1].any(), "of those that take part alone"


def test_out_of_memory_makes_batches_smaller_for_good(
    encoded: tuple[str, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, table = encoded
    due, sizes, make = errors(place, table, Reads(3, frozenset())), [], batches.make_batch

    def of_three(rows: Any, *args: Any) -> Any:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("as a GPU says it")
        return make(rows, *args)

    monkeypatch.setattr(batches, "make_batch", of_three)
    found = errors(place, table, Reads(3, frozenset()))
    for name in due:
        np.testing.assert_allclose(found[name], due[name], rtol=2e-6)
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2


def test_pictures_that_rows_name_within_the_dataset_are_encoded_after_a_move(tmp_path: Path) -> None:
    rows = pq.read_table(f"{small_dataset.write(tmp_path / 'd')}/data").to_pylist()
    inside = [{**row, "candidates": [dict(c) for c in row["candidates"]]} for row in rows]
    (tmp_path / "images").mkdir()
    for row in inside:
        for k, candidate in enumerate(row["candidates"]):
            if candidate["image"] is not None:
                name = f"images/{row['prompt_id']}-{k}.png"
                (tmp_path / name).write_bytes(candidate["image"]["bytes"])
                candidate["image"] = {"bytes": None, "path": name}
    job = EncodeJob(SPEC, "cpu", "float32", "float32", 4, str(tmp_path / "set"), dataset=str(tmp_path))
    found, due = (EncodeActor(job).encode(each)["latents"].to_pylist() for each in (inside, rows))
    assert found == due
