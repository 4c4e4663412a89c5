"""A dataset grown from a finished one equals the one made at once, and only what is new is made."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BAD, GREEN, RED, REHEARSE, SEED, Ended, Toys, here, model, rows, start, wait_for
from ray.cluster_utils import Cluster

from rankray import store

pytestmark = pytest.mark.ray

Job = Callable[..., Ended]
BLUE = model("Brightness", "blue", "num_gpus=0.25", channel=2)
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


def made(output: Path) -> dict[str, int]:
    """Pictures or scores that each model made for the dataset, by its bill."""
    return {item["model"]: item["items"] for item in store.read(str(output)).info["cost"]["models"]}


@pytest.mark.parametrize("mode", ["streaming", pytest.param("phases", marks=pytest.mark.slow)])
def test_more_of_everything(job: Job, toys: Toys, more_prompts: Path, tmp_path: Path, mode: str) -> None:
    """A generator, samples, a reward and prompts more, of a dataset in which some items failed."""
    generators, rewards = f"{noise(3)}, {COARSE}, {FINE}", f"{GREEN}, {BLUE}, {RED}"
    way = options(more_prompts, generators, rewards, "--execution.mode", mode)
    new, whole = tmp_path / "new", tmp_path / "whole"
    done = job("extend", "--output", str(new), *way, "--reuse", str(toys.output))
    assert done.code == 0, done.text
    assert f"reusing 40 prompts of {toys.output}: 3 pictures of each (" in done.text
    assert job("synpic", "--output", str(whole), *way).code == 0
    assert rows(new) == rows(whole)
    store.validate(str(new))
    ours, theirs = (store.read(str(place)).info for place in (new, whole))
    assert (ours["identity"], ours["failures"]) == (theirs["identity"], theirs["failures"])
    assert ours["reused"]["images"] == 3 * 40
    # 40 old prompts lack a third sample, 6 new ones all three. Of what came, all but one prompt's are pictures.
    assert made(new) == {
        "noise": 40 + 6 * 3,
        "coarse": 6,
        "fine": 46,
        "green": 2 * 39 + 5 * 6,
        "blue": 5 * 45,
        "red": 2 * 39 + 5 * 6,
    }
    again = job("synpic", "--output", str(new), *way)
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
