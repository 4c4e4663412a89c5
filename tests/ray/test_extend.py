"""A dataset grown from a finished one equals the one made at once, and only what is new is made."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import (
    BAD,
    GREEN,
    PLAIN,
    RED,
    REHEARSE,
    SEED,
    Ended,
    Toys,
    here,
    model,
    rows,
    start,
    toy_options,
    wait_for,
)
from ray.cluster_utils import Cluster

from rankray import store

pytestmark = pytest.mark.ray

Job = Callable[..., Ended]
COARSE = model("Noise", "coarse", "num_gpus=1", size=4)
FINE = model("Noise", "fine", "num_gpus=0.5", size=16)


def noise(samples: int, delay_s: float = 0.0) -> str:
    return model("Noise", "noise", "num_gpus=1", samples, delay_s=delay_s, log="")


def options(prompts: Path, generators: str, rewards: str, *more: str) -> list[str]:
    way = ["--prompts.path", str(prompts), "--generators", f"[{generators}]", "--rewards", f"[{rewards}]"]
    settings = ["--execution.rows_per_block", "4", "--execution.tolerance", "1", "--seed", str(SEED)]
    return [*way, *settings, *REHEARSE, *more]


@pytest.fixture
def more_prompts(toys: Toys, tmp_path: Path) -> Path:
    """The toys' prompts and six more."""
    path = tmp_path / "more.txt"
    path.write_bytes(toys.prompts.read_bytes() + b"".join(b"another prompt %d\n" % i for i in range(6)))
    return path


@pytest.fixture(scope="module")
def begun(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One reward of a picture of two generators each, of eight of the toys' prompts, the bad ones among them.

    The toys have one of the two. The one dataset here whose pools claim no GPU, as machines without any have it.
    """
    place = tmp_path_factory.mktemp("begun")
    (place / "p.txt").write_text("\n".join([*BAD, *PLAIN[:5]]))
    other = model("Noise", "fine", "num_gpus=0", size=16)
    noise_ = model("Noise", "noise", "num_gpus=0", delay_s=0.0, log="")
    models = f"{other}, {noise_}", model("Brightness", "red", "num_gpus=0")
    words = [word for word in options(place / "p.txt", *models) if word not in REHEARSE]
    ended = here("synpic", "--output", str(place / "o"), *words)
    assert ended.code == 0, ended.text
    return place / "o"


def made(output: Path) -> dict[str, int]:
    """Pictures or scores that each model made for the dataset, by its bill."""
    return {item["model"]: item["items"] for item in store.read(str(output)).info["cost"]["models"]}


@pytest.mark.parametrize("mode", ["streaming", pytest.param("phases", marks=pytest.mark.slow)])
def test_more_of_everything(job: Job, begun: Path, toys: Toys, tmp_path: Path, mode: str) -> None:
    """A generator, a sample, a reward and prompts more, of a dataset in which some items failed, come to the toys'."""
    assert store.read(str(begun)).info["cost"]["totals"]["gpu_hours"] == 0.0
    way = toy_options(toys.prompts, "--execution.tolerance", "1", "--execution.mode", mode)
    done = job("extend", "--output", str(tmp_path / "new"), *way, "--reuse", str(begun))
    assert done.code == 0, done.text
    assert f"reusing 8 prompts of {begun}: 1 pictures of each (" in done.text
    assert rows(tmp_path / "new") == rows(toys.output)
    store.validate(str(tmp_path / "new"))
    ours, theirs = (store.read(str(place)).info for place in (tmp_path / "new", toys.output))
    assert ours["identity"] == theirs["identity"]
    assert ours["failures"]["by_model"] == theirs["failures"]["by_model"]
    assert ours["reused"]["images"] == 8
    # 8 prompts lack a second sample, 32 both. Of what came, all but one prompt's are pictures.
    images = {"noise": 8 + 2 * 32, "coarse": 40}
    assert made(tmp_path / "new") == {**images, "red": 2 * 7 + 3 * 32, "green": 3 * 39}
    again = job("synpic", "--output", str(tmp_path / "new"), *way)
    assert "is complete already; nothing to do" in again.text


@pytest.mark.slow
def test_a_killed_extension_goes_on(
    job: Job, cluster: Cluster, more_prompts: Path, toys: Toys, tmp_path: Path
) -> None:
    old, new, whole = (tmp_path / name for name in ("old", "new", "whole"))
    first = options(toys.prompts, f"{noise(1, 0.1)}, {COARSE}", RED)
    assert job("synpic", "--output", str(old), *first).code == 0
    way = options(more_prompts, f"{noise(2, 0.1)}, {COARSE}", RED)
    reuse = ("--reuse", str(old))
    process = start(cluster.address, "extend", "--output", str(new), *way, *reuse)
    wait_for(lambda: any(new.rglob("checkpoint-*/*.parquet")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (new / "dataset.json").exists()
    refused = job("synpic", "--output", str(new), *way)
    assert refused.code == 2
    assert "was begun with reuse of" in refused.text
    done = job("extend", "--output", str(new), *way, *reuse)
    assert done.code == 0, done.text
    assert "resuming: " in done.text
    assert job("synpic", "--output", str(whole), *way).code == 0
    assert rows(new) == rows(whole)


@pytest.mark.slow
def test_pictures_kept_as_files_are_copied(job: Job, toys: Toys, tmp_path: Path) -> None:
    files = ("--images.store", "files")
    old, new = tmp_path / "old", tmp_path / "new"
    assert job("synpic", "--output", str(old), *options(toys.prompts, noise(2), RED, *files)).code == 0
    way = options(toys.prompts, noise(2), f"{RED}, {GREEN}", *files)
    done = job("extend", "--output", str(new), *way, "--reuse", str(old))
    assert done.code == 0, done.text
    assert made(new) == {"green": 2 * 39}
    names = [sorted(path.name for path in (place / "images").iterdir()) for place in (old, new)]
    assert names[0] == names[1]
    assert any(prompt in {row["prompt"] for row in rows(new).values()} for prompt in BAD)
    for row in store.read(str(new)).rows(images=True):
        for candidate in row["candidates"]:
            if candidate["image"] is not None:
                assert Path(candidate["image"]["path"]).parent == new / "images"
    store.validate(str(new))


def test_refusals(toys: Toys, tmp_path: Path) -> None:
    """None of them asks for a Ray."""
    old, reuse = toys.output, ("--reuse", str(toys.output))

    def refusal(*words: str) -> str:
        found = here("extend", "--output", str(tmp_path / "new"), *words)
        assert found.code == 2, found.text
        assert "Traceback" not in found.text
        assert not (tmp_path / "new").exists()
        return found.text

    more = options(toys.prompts, f"{noise(2)}, {COARSE}, {FINE}", f"{RED}, {GREEN}")
    assert "name the finished dataset: --reuse DATASET" in refusal(*more)
    none = tmp_path / "none"
    assert f"nothing to reuse: {none}: no dataset there" in refusal(*more, "--reuse", str(none))
    assert f"seed: {SEED} there, 6 here" in refusal(*more, "--seed", "6", *reuse)
    assert "images.format: 'png' there, 'webp' here" in refusal(*more, "--images.format", "webp", *reuse)
    changed = options(toys.prompts, f"{noise(2, 0.5)}, {COARSE}, {FINE}", f"{RED}, {GREEN}")
    assert "generators.noise.options.delay_s: 0.0 there, 0.5 here" in refusal(*changed, *reuse)
    same = options(toys.prompts, f"{noise(2)}, {COARSE}", f"{RED}, {GREEN}")
    assert f"{old} holds all of this job; `rankray rerank` drops or weighs" in refusal(*same, *reuse)
    strange = options(toys.prompts, model("Noise", "other", "num_gpus=1", 2), RED)
    assert "pictures of none of its generators; leave `reuse` out" in refusal(*strange, *reuse)
