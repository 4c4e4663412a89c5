"""Datasets and models on the hub: sent to one on this machine by the hub's own client, and taken from there by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import small_dataset
from hub_server import TOKEN, Hub, asked, environment, serving
from huggingface_hub import DatasetCard

from rankray import store
from rankray.data import hub as exchange
from rankray.report.card import keep_gain, write_cards

RANKRAY = "import sys; from rankray import commands; sys.exit(commands.main(sys.argv[1:]))"
LOAD = """
import sys, datasets
for row in datasets.load_dataset(sys.argv[1], split="train"):
    for candidate in row["candidates"]:
        image = candidate["image"]
        print("FOUND", row["prompt"], candidate["rank"], image and (image.size, image.getpixel((0, 0))))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    with serving() as found:
        found.root = tmp_path / "repositories"
        yield found


def rankray(hub: Hub, home: Path, *words: str, **more: str) -> tuple[int, str]:
    """Exit code and what is printed."""
    ended = subprocess.run(
        [sys.executable, "-c", RANKRAY, *words],
        env={**environment(hub, home), "HF_TOKEN": TOKEN, **more},
        capture_output=True,
        text=True,
        check=False,
    )
    assert TOKEN not in ended.stdout + ended.stderr
    return ended.returncode, ended.stdout + ended.stderr


def rankings(path: Path) -> list[str]:
    return [repr(row) for row in sorted(store.read(str(path)).rows(images=True), key=lambda r: r["prompt"])]


def test_a_dataset_there_and_back(hub: Hub, tmp_path: Path) -> None:
    source, home = small_dataset.write(tmp_path / "d"), tmp_path / "home"
    info = json.loads((tmp_path / "d" / "dataset.json").read_text())
    info["identity"]["prompts.path"] = "/home/somebody/secret/prompts.txt"
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(info))
    code, said = rankray(hub, home, "export", source, "--to", "hub", "--output", "me/set", "--private")
    assert (code, said) == (0, f"dataset: {hub.url}/datasets/me/set\n")
    assert hub.private == {"datasets/me/set"}
    place = hub.repositories["datasets/me/set"]
    assert "secret" not in (place / "dataset.json").read_text()
    card = DatasetCard((place / "README.md").read_text())
    assert "rankray" in card.data.tags
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert "| t | z | not stated |" in card.text
    assert (
        "| r | 100.0 % | 100.0 % | 33.3 % |" in card.text
    )  # of three pairs r and t order 2-0 of b or 1-2 of a alike
    for line in card.text.splitlines():
        if line.startswith("| a | "):
            names = [part.partition(")")[0] for part in line.split("(")[1:]]
    assert [(place / name).read_bytes() for name in names] == [
        small_dataset.picture("a", k) for k in (0, 1, 2)
    ]
    loaded = asked(LOAD, hub, home, "me/set", HF_TOKEN=TOKEN)
    assert len(loaded) == 9
    assert loaded[0] == " a 1 ((4, 2), (97, 0, 0))"
    assert loaded[-1] == " c 0 None"
    code, said = rankray(hub, home, "import", "hub:me/set", "--output", str(tmp_path / "back"))
    assert code == 0, said
    assert rankings(tmp_path / "back") == rankings(tmp_path / "d")
    assert store.validate(str(tmp_path / "back")) == store.Validation(3, 9, 8, 2)

    puts = len(hub.puts)
    table = pq.read_table(tmp_path / "d" / "data" / "1.parquet")
    pq.write_table(table, tmp_path / "d" / "data" / "2.parquet", compression="gzip")
    (tmp_path / "d" / "data" / "1.parquet").unlink()
    code, said = rankray(hub, home, "export", source, "--to", "hub", "--output", "me/set")
    assert code == 0, said
    assert len(hub.puts) == puts + 1, "what is there is not sent again"
    assert sorted(file.name for file in (place / "data").iterdir()) == ["0.parquet", "2.parquet"]


def test_what_is_to_be_private_is_not_sent_where_others_read(hub: Hub, tmp_path: Path) -> None:
    source, home = small_dataset.write(tmp_path / "d"), tmp_path / "home"
    words = ["export", source, "--to", "hub", "--output", "me/set"]
    assert rankray(hub, home, *words)[0] == 0
    commits, puts = hub.commits["datasets/me/set"], len(hub.puts)
    (tmp_path / "d" / "data" / "1.parquet").rename(tmp_path / "d" / "data" / "2.parquet")
    code, said = rankray(hub, home, *words, "--private")
    assert (code, said.count("\n")) == (2, 1), said
    assert "dataset 'me/set' is on the hub already, and others may read it; make it private" in said
    assert (hub.commits["datasets/me/set"], len(hub.puts)) == (commits, puts)
    hub.private.add("datasets/me/set")
    assert rankray(hub, home, *words, "--private")[0] == 0
    assert hub.commits["datasets/me/set"] == commits + 1


def test_pictures_beside_the_rows_go_into_them(hub: Hub, tmp_path: Path) -> None:
    source = small_dataset.write(tmp_path / "d")
    (tmp_path / "d" / "images").mkdir()
    for file in sorted((tmp_path / "d" / "data").iterdir()):
        table = pq.read_table(file)
        rows = table.to_pylist()
        for row in rows:
            for k, candidate in enumerate(row["candidates"]):
                if candidate["image"]:
                    name = f"images/{row['prompt_id']}-{k}.png"
                    (tmp_path / "d" / name).write_bytes(candidate["image"]["bytes"])
                    candidate["image"] = {"bytes": None, "path": name}
        pq.write_table(type(table).from_pylist(rows, table.schema), file)
    info = json.loads((tmp_path / "d" / "dataset.json").read_text())
    info["identity"]["images.store"] = "files"
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(info))
    store.validate(source)
    code, said = rankray(hub, tmp_path / "home", "export", source, "--to", "hub", "--output", "me/set")
    assert code == 0, said
    assert " a 1 ((4, 2), (97, 0, 0))" in asked(LOAD, hub, tmp_path / "home", "me/set", HF_TOKEN=TOKEN)


def run_of(path: Path, lora_rank: int) -> str:
    """What a finished run leaves, as far as the hub is to have it."""
    (path / "pipeline" / "unet").mkdir(parents=True)
    (path / "pipeline" / "model_index.json").write_text("{}")
    (path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    (path / "metrics.jsonl").write_text("{}\n")
    if lora_rank:
        (path / "pytorch_lora_weights.safetensors").write_bytes(b"adapters")
    model = {
        "source": "owner/base",
        "revision": "0" * 40,
        "licence": "mit",
        "pipeline": "StableDiffusionXLPipeline",
        "denoiser": "unet",
        "lora_form": "diffusers",
        "load": {},
        "call": {"num_inference_steps": 2},
    }
    info = {
        "rankray_version": "0",
        "created": "2026-01-01T00:00:00+00:00",
        "identity": {"steps": 1, "dataset": f"{path}/set"},
        "dataset": f"{path}/set",
        "model": model,
        "data": {"rows": 3, "generators": [{"name": "one", "samples": 2}], "rewards": []},
        "objective": {"name": "rank_dpo", "beta": 1.0, "options": {}},
        "lora_rank": lora_rank,
        "lora_alpha": lora_rank,
        "parameters": {"trained": 1, "total": 2},
        "steps": 1,
        "batch_size": 1,
    }
    (path / "run.json").write_text(json.dumps(info))
    return str(path)


def test_a_model_goes_with_its_card(hub: Hub, tmp_path: Path) -> None:
    """Of LoRA the adapters, else the pipeline; neither logs nor the run's own notes."""
    cases = (
        (
            "full",
            0,
            ["README.md", "model_index.json", "unet/diffusion_pytorch_model.safetensors"],
            "finetune",
        ),
        ("lora", 4, ["README.md", "pytorch_lora_weights.safetensors"], "adapter"),
    )
    for name, rank, due, relation in cases:
        run = run_of(tmp_path / name, rank)
        code, said = rankray(hub, tmp_path / "home", "export", run, "--to", "hub", "--output", f"me/{name}")
        assert (code, said) == (0, f"run: {hub.url}/me/{name}\n")
        place = hub.repositories[f"me/{name}"]
        found = sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())
        assert found == [".gitattributes", *due]
        text = (place / "README.md").read_text()
        assert "base_model: owner/base" in text
        assert "| dataset | set: 3 prompts |" in text
        assert str(tmp_path) not in text
        assert f"base_model_relation: {relation}" in text


def test_adapters_of_a_pipeline_that_was_tuned_here_go_as_the_pipeline(hub: Hub, tmp_path: Path) -> None:
    """Nobody else has what they adapt: the second round's base is the first round's output."""
    run = run_of(tmp_path / "round2", 4)
    info = json.loads((tmp_path / "round2" / "run.json").read_text())
    base = {"source": "owner/base", "revision": "0" * 40, "licence": "mit"}
    info["model"] |= {"source": "/data/round1/pipeline", "revision": "sha256:" + "1" * 64, "base": base}
    (tmp_path / "round2" / "run.json").write_text(json.dumps(info))
    code, said = rankray(hub, tmp_path / "home", "export", run, "--to", "hub", "--output", "me/round2")
    assert code == 0, said
    assert (
        "the merged pipeline goes to the hub: the adapters are of /data/round1/pipeline, tuned here" in said
    )
    place = hub.repositories["me/round2"]
    assert (place / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == b"weights"
    assert not (place / "pytorch_lora_weights.safetensors").exists()
    text = (place / "README.md").read_text()
    assert "base_model_relation: finetune" in text
    assert "StableDiffusionXLPipeline.from_pretrained(place)" in text


def test_a_model_sent_again_leaves_no_earlier_weights(hub: Hub, tmp_path: Path) -> None:
    """Shards of float32 would be loaded in place of the one file of float16; what the owner put there stays."""
    for name, files in (
        ("full", {"a-00001-of-00002.safetensors": b"1", "a-00002-of-00002.safetensors": b"2"}),
        ("half", {"a.safetensors": b"3"}),
    ):
        run = run_of(tmp_path / name, 0)
        unet = tmp_path / name / "pipeline" / "unet"
        (unet / "diffusion_pytorch_model.safetensors").unlink()
        if name == "full":
            files["a.safetensors.index.json"] = b"{}"
        for file, content in files.items():
            (unet / file).write_bytes(content)
        code, said = rankray(hub, tmp_path / "home", "export", run, "--to", "hub", "--output", "me/twice")
        assert code == 0, said
        there = hub.repositories["me/twice"] / "unet"
        assert {file.name: file.read_bytes() for file in there.iterdir()} == files
        (hub.repositories["me/twice"] / "gallery.png").write_bytes(b"mine")
    assert (hub.repositories["me/twice"] / "gallery.png").exists()


def test_what_an_alignment_measured_goes_too(hub: Hub, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 0)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    keep_gain(run, info, {"checker": "66.7 % → 83.3 %"})
    write_cards(run, info)
    code, said = rankray(hub, tmp_path / "home", "export", run, "--to", "hub", "--output", "me/aligned")
    assert code == 0, said
    for place in (hub.repositories["me/aligned"], tmp_path / "run" / "pipeline"):
        assert "| checker | 66.7 % → 83.3 % |" in (place / "README.md").read_text()


def test_one_line_for_what_the_hub_does_not_take(hub: Hub, tmp_path: Path) -> None:
    source, home = small_dataset.write(tmp_path / "d"), tmp_path / "home"
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    hub.repositories |= {"datasets/me/other": theirs, "datasets/you/set": tmp_path / "marked"}
    (tmp_path / "marked").mkdir()
    (tmp_path / "marked" / "README.md").write_text("---\ntags:\n- rankray\n---\n")
    align = tmp_path / "align"
    align.mkdir()
    (align / "align.json").write_text('{"rankray_version": "0"}')
    cases: list[tuple[list[str], dict[str, str], str]] = [
        ([source, "--output", "me/other"], {}, "is on the hub already and is not of rankray's making"),
        ([source, "--output", "you/new"], {}, "the hub does not let you write 'you/new' (HTTP 403)"),
        ([source, "--output", "you/set"], {}, "the hub does not let you write 'you/set' (HTTP 403)"),
        (
            [source, "--output", "me/new"],
            {"HF_TOKEN": "hf_false"},
            "the hub does not let you write 'me/new' (HTTP 40",
        ),
        (
            [source, "--output", "me/new"],
            {"HF_TOKEN": ""},
            "the hub wants a token to write 'me/new': set HF_TOKEN",
        ),
        ([source, "--output", "new"], {}, "output 'new' is no repository of the hub; write OWNER/NAME"),
        ([str(align), "--output", "me/new"], {}, "is an alignment; a dataset or a run goes to the hub"),
    ]
    for words, more, message in cases:
        code, said = rankray(hub, home, "export", "--to", "hub", *words, **more)
        assert (code, said.count("\n")) == (2, 1), said
        assert said.startswith("rankray: ")
        assert message in said
    assert (theirs / "README.md").read_text().endswith("mine\n")
    for name, message in (
        ("me/none", "there is no hub repository 'me/none'"),
        ("me/other", "has no dataset.json"),
    ):
        code, said = rankray(hub, home, "import", f"hub:{name}", "--output", str(tmp_path / "o"))
        assert code == 2
        assert message in said.splitlines()[-1]
    assert not (tmp_path / "o").exists()


def test_who_takes_a_dataset_is_told_nothing_of_writing(hub: Hub, tmp_path: Path) -> None:
    source, home = small_dataset.write(tmp_path / "d"), tmp_path / "home"
    assert rankray(hub, home, "export", source, "--to", "hub", "--output", "me/set")[0] == 0
    words = ["import", "hub:me/set", "--output", str(tmp_path / "o")]
    hub.broken = True
    code, said = rankray(hub, home, *words)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("rankray: hub repository 'me/set': ")
    assert said.endswith("; try again\n")
    assert "commit" not in said


def test_places_on_this_machine_are_cut() -> None:
    info = {"a": "/home/me/x.txt", "b": ["~/y", "s3://bucket/z"], "c": {"d": "file:///q/r/"}, "e": 3}
    assert exchange.public(info) == {"a": "x.txt", "b": ["y", "s3://bucket/z"], "c": {"d": "r"}, "e": 3}
