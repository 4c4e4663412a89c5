"""A dataset grown from a finished one equals the one made at once, and only what is new is made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, Ended, command, environment, rows

from rankray import store

pytestmark = pytest.mark.ray

Job = Callable[..., Ended]
POOL = "pool={num_cpus=0.1}"
RED = f'{{model="toy_models:Brightness", name="red", {POOL}}}'
GREEN = f'{{model="toy_models:Brightness", name="green", options={{channel=1}}, {POOL}}}'
COARSE = f'{{model="toy_models:Noise", name="coarse", options={{size=4}}, {POOL}}}'
BAD = ("unpaintable thing", "unjudgeable thing")


def noise(samples: int, delay_s: float = 0.0) -> str:
    return f'{{model="toy_models:Noise", name="noise", samples={samples}, options={{delay_s={delay_s}}}, {POOL}}}'


def options(prompts: Path, generators: str, rewards: str, *more: str) -> list[str]:
    way = ["--prompts.path", str(prompts), "--generators", f"[{generators}]", "--rewards", f"[{rewards}]"]
    return [*way, "--execution.rows_per_block", "4", "--execution.tolerance", "1", "--seed", "5", *more]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(26 prompts, the same and 10 more); two of the first fail."""
    place = tmp_path_factory.mktemp("prompts")
    few, many = place / "few.txt", place / "many.txt"
    first = [*BAD, *(f"prompt number {i}" for i in range(24))]
    few.write_text("\n".join(first))
    many.write_text("\n".join([*first, *(f"another prompt {i}" for i in range(10))]))
    return few, many


def extend(output: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs" / "extend.py"), "--output", str(output), *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    text, _ = process.communicate(timeout=300)
    return Ended(process.returncode, text)


@pytest.fixture(scope="module")
def old(prompts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished dataset: two samples of one generator, one reward."""
    place = tmp_path_factory.mktemp("old") / "dataset"
    subprocess.run(
        command(place, *options(prompts[0], noise(2), RED)),
        env=environment(),
        check=True,
        capture_output=True,
    )
    return place


def made(output: Path) -> dict[str, int]:
    """Pictures or scores that each model made for the dataset, by its bill."""
    return {item["model"]: item["items"] for item in store.read(str(output)).info["cost"]["models"]}


@pytest.mark.parametrize("mode", ["streaming", pytest.param("phases", marks=pytest.mark.slow)])
def test_more_of_everything(
    job: Job, prompts: tuple[Path, Path], old: Path, tmp_path: Path, mode: str
) -> None:
    """A generator, samples, a reward and prompts more."""
    way = options(prompts[1], f"{noise(3)}, {COARSE}", f"{GREEN}, {RED}", "--execution.mode", mode)
    done = ended(extend(tmp_path / "new", *way, "--reuse", str(old)))
    assert done.code == 0, done.text
    assert f"reusing 26 prompts of {old}: 2 pictures of each (noise), scores of red" in done.text
    assert job(tmp_path / "whole", *way).code == 0
    assert rows(tmp_path / "new") == rows(tmp_path / "whole")
    store.validate(str(tmp_path / "new"))
    new, whole = (store.read(str(tmp_path / name)).info for name in ("new", "whole"))
    assert (new["identity"], new["failures"]) == (whole["identity"], whole["failures"])
    assert new["reused"]["images"] == 52
    # 26 old prompts lack a third sample, 10 new ones all three. Of what came, all but one prompt's are pictures.
    assert made(tmp_path / "new") == {
        "noise": 26 + 30,
        "coarse": 36,
        "green": 4 * 35,
        "red": 2 * 25 + 4 * 10,
    }
    again = job(tmp_path / "new", *way)
    assert "is complete already; nothing to do" in again.text


@pytest.mark.slow
def test_a_killed_extension_goes_on(job: Job, prompts: tuple[Path, Path], tmp_path: Path) -> None:
    assert job(tmp_path / "old", *options(prompts[0], f"{noise(1, 0.1)}, {COARSE}", RED)).code == 0
    way = options(prompts[1], f"{noise(2, 0.1)}, {COARSE}", RED)
    reuse = ("--reuse", str(tmp_path / "old"))
    process = extend(tmp_path / "new", *way, *reuse)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "new").rglob("checkpoint-*/*.parquet")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "new" / "dataset.json").exists()
    refused = job(tmp_path / "new", *way)
    assert refused.code == 2
    assert "was begun with reuse of" in refused.text
    done = ended(extend(tmp_path / "new", *way, *reuse))
    assert done.code == 0, done.text
    assert "resuming: " in done.text
    assert job(tmp_path / "whole", *way).code == 0
    assert rows(tmp_path / "new") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_pictures_kept_as_files_are_copied(job: Job, prompts: tuple[Path, Path], tmp_path: Path) -> None:
    files = ("--images.store", "files")
    assert job(tmp_path / "old", *options(prompts[0], noise(2), RED, *files)).code == 0
    way = options(prompts[0], noise(2), f"{RED}, {GREEN}", *files)
    done = ended(extend(tmp_path / "new", *way, "--reuse", str(tmp_path / "old")))
    assert done.code == 0, done.text
    assert made(tmp_path / "new") == {"green": 50}
    names = [sorted(path.name for path in (tmp_path / name / "images").iterdir()) for name in ("old", "new")]
    assert names[0] == names[1]
    for row in rows(tmp_path / "new").values():
        for candidate in row["candidates"]:
            if candidate["image"] is not None:
                assert Path(candidate["image"]["path"]).parent == tmp_path / "new" / "images"
    store.validate(str(tmp_path / "new"))


def test_refusals(prompts: tuple[Path, Path], old: Path, tmp_path: Path) -> None:
    def refusal(*words: str) -> str:
        found = ended(extend(tmp_path / "new", *words))
        assert found.code == 2, found.text
        assert "Traceback" not in found.text
        assert not (tmp_path / "new").exists()
        return found.text

    more = options(prompts[0], f"{noise(2)}, {COARSE}", RED)
    assert "name the finished dataset: --reuse DATASET" in refusal(*more)
    assert f"nothing to reuse: {tmp_path / 'none'}: no dataset there" in refusal(
        *more, "--reuse", str(tmp_path / "none")
    )
    assert "seed: 5 there, 6 here" in refusal(*more, "--seed", "6", "--reuse", str(old))
    assert "images.format: 'png' there, 'webp' here" in refusal(
        *more, "--images.format", "webp", "--reuse", old
    )
    changed = options(prompts[0], f"{noise(2, 0.5)}, {COARSE}", RED)
    assert "generators.noise.options.delay_s: 0.0 there, 0.5 here" in refusal(*changed, "--reuse", str(old))
    same = options(prompts[0], noise(2), RED)
    assert f"{old} holds all of this job; `rankray rerank` drops or weighs" in refusal(
        *same, "--reuse", str(old)
    )
    strange = options(prompts[0], COARSE.replace("}}", "}, samples=2}"), RED)
    assert "pictures of none of its generators; leave `reuse` out" in refusal(*strange, "--reuse", str(old))
