"""Weights at a URI: identified unread, copied once a node, whole or not at all, and loaded by every kind of model."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rankray import evals
from rankray.config import ConfigError, EvalChoice, GeneratorChoice, RewardChoice
from rankray.models import denoisers, generators, rewards, weights
from rankray.models.denoisers.parts import load_denoiser
from rankray.models.targets import Target, load
from rankray.models.weights import copy_here, pin, weights_revision
from recipes.random_weights import judges
from recipes.random_weights.pipelines import awaken, sdxl
from recipes.random_weights.rewards import clip_config, mps

PICTURES = [Image.new("RGB", (48, 40), color) for color in ("red", "navy")]


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this node keeps its copies."""
    monkeypatch.setenv("RANKRAY_WEIGHTS", str(tmp_path / "node"))
    return tmp_path / "node"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    place = tmp_path / "bucket" / "model"
    (place / "unet").mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "unet" / "weights.bin").write_bytes(b"x" * 100_000)
    (place / "picture.png").write_bytes(b"no weights")
    (place / ".hidden.json").write_text("no weights")
    return place


def copies(node: Path) -> list[Path]:
    return [path for path in node.rglob("*") if path.is_file() and path.name != ".lock"]


def refused(uri: str) -> str:
    with pytest.raises(ConfigError) as caught:
        copy_here(uri)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_directory_is_copied_as_far_as_it_counts(bucket: Path) -> None:
    copy = copy_here(f"file://{bucket}")
    names = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file())
    assert names == ["config.json", "unet/weights.bin"]
    assert weights.sha256(copy) == weights.sha256(bucket)


def test_a_file_is_copied_alone_and_hashed_as_one_here(bucket: Path) -> None:
    file = bucket / "unet" / "weights.bin"
    copy = copy_here(pin(f"file://{file}", f"sha256:{weights.sha256(file)}").source)
    assert copy.name == "weights.bin"
    assert copy.read_bytes() == file.read_bytes()
    assert [path.name for path in copy.parent.iterdir() if path.name != ".lock"] == ["weights.bin"]


def test_the_driver_reads_and_copies_nothing(bucket: Path, node: Path) -> None:
    before = weights_revision(f"file://{bucket}", "main")
    assert before.startswith("listing:")
    assert weights_revision(f"file://{bucket}", "main") == before
    (bucket / "picture.png").write_bytes(b"another picture")
    assert weights_revision(f"file://{bucket}", "main") == before
    (bucket / "unet" / "weights.bin").write_bytes(b"y" * 100_000)  # of the same size
    assert weights_revision(f"file://{bucket}", "main") != before
    assert not node.exists()


def test_what_changed_since_the_job_began_is_refused(bucket: Path, node: Path) -> None:
    found = pin(f"file://{bucket}", "main")
    assert found.source == f"file://{bucket}#{found.recorded}"
    (bucket / "unet" / "weights.bin").write_bytes(b"y" * 100_000)
    said = refused(found.source)
    assert said.startswith(f"the weights at file://{bucket} are listing:")
    assert f"where {found.recorded} is due: they were changed since the job began" in said
    assert copies(node) == []


def test_a_hash_of_the_content_is_held_to(bucket: Path, node: Path) -> None:
    due = f"sha256:{weights.sha256(bucket)}"
    assert pin(f"file://{bucket}", due).recorded == due
    assert refused(f"file://{bucket}#sha256:{'0' * 64}").startswith(
        f"the weights at file://{bucket} are {due}, where"
    )
    assert copies(node) == []
    assert weights.sha256(copy_here(f"file://{bucket}#{due}")) == due.removeprefix("sha256:")


def test_what_a_kill_left_is_begun_anew(bucket: Path) -> None:
    uri = pin(f"file://{bucket}", "main").source
    copy = copy_here(uri)
    half = copy.parent / ".passing" / "model"
    half.mkdir(parents=True)
    (half / "config.json").write_text("half")
    (half / "stray.json").write_text("half")
    shutil.rmtree(copy)
    assert weights.sha256(copy_here(uri)) == weights.sha256(bucket)
    assert not half.exists()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:///nowhere/at/all", "there are no weights at file:///nowhere/at/all; it must hold"),
        ("nosuch://bucket/model", "the weights at nosuch://bucket/model cannot be read: "),
    ],
)
def test_a_place_without_weights_is_one_line(uri: str, said: str) -> None:
    assert refused(uri).startswith(said)
    with pytest.raises(ConfigError, match=said.split(" at ", maxsplit=1)[0]):
        rewards.resolve(RewardChoice(model="mps", source=uri))


def _actor(uri: str, start: Any, said: Any) -> None:
    start.wait()
    try:
        said.put((weights.copy_here(uri) / "unet").stat().st_ino)
    except Exception as error:  # noqa: BLE001 - the parent tells
        said.put(repr(error))


def test_actors_that_start_together_copy_once(bucket: Path, node: Path) -> None:
    uri = pin(f"file://{bucket}", "main").source
    forked = multiprocessing.get_context("fork")
    start, said = forked.Barrier(6), forked.Queue()
    actors = [forked.Process(target=_actor, args=(uri, start, said)) for _ in range(6)]
    for actor in actors:
        actor.start()
    found = [said.get(timeout=120) for _ in actors]
    for actor in actors:
        actor.join()
    assert found == [(copy_here(uri) / "unet").stat().st_ino] * 6
    assert len(copies(node)) == 2


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    (place / "mps").mkdir()
    mps(place / "mps")
    pipe = sdxl()
    awaken(pipe)
    pipe.save_pretrained(place / "sdxl")
    judges.make("dpg", place / "dpg")
    return place


def resolved(kind: str, root: str) -> Target:
    """A model of that kind, its weights under `root`: a directory, or a URI of it."""
    if kind == "reward":
        tokens = clip_config().text_config.vocab_size
        options = {"processor": f"{root}/mps", "vocabulary": tokens}
        return rewards.resolve(RewardChoice(model="mps", source=f"{root}/mps", options=options))
    if kind == "generator":
        settings: Any = {"height": 64, "width": 64, "steps": 1, "batch_size": 1, "dtype": "float32"}
        return generators.resolve(GeneratorChoice(model="sdxl", source=f"{root}/sdxl", **settings))
    item = {"item_id": "1", "questions": {"1": {"text": "a circle?", "category": "x", "parents": []}}}
    choice = EvalChoice(model="dpg", models={"vqa": f"{root}/dpg/vqa"}, options={"vocabulary": None})
    return evals.resolve(choice, [evals.Item("a circle", item)])


def made(target: Target) -> Any:
    model = load(target, "cpu")
    if hasattr(model, "score"):
        return model.score(PICTURES, ["a red circle"] * 2).tolist()
    if hasattr(model, "generate"):
        return [picture.tobytes() for picture in model.generate(["a red circle"], [1])]
    return model.judge(PICTURES, ["a circle"] * 2)


@pytest.mark.parametrize("kind", ["reward", "generator", "judge"])
def test_every_kind_of_model_loads_from_a_uri(small: Path, node: Path, kind: str) -> None:
    target = resolved(kind, f"file://{small}")
    assert copies(node) == []
    assert "listing:" in target.revision
    assert made(target) == made(resolved(kind, str(small)))
    assert copies(node)
    # A directory and a URI of the same weights are named alike by the hash of their content.
    name = {"reward": "mps", "generator": "sdxl", "judge": "dpg/vqa"}[kind]
    digest = pin(str(small / name), "main").recorded
    assert pin(f"file://{small / name}", digest).recorded == digest


def test_training_starts_from_a_uri(small: Path, node: Path) -> None:
    spec = resolved("generator", f"file://{small}").kwargs["spec"]
    denoisers.check_family(spec)
    assert copies(node) == []
    ours = load_denoiser(spec, "cpu", torch.float32).state_dict()
    theirs = load_denoiser(
        resolved("generator", str(small)).kwargs["spec"], "cpu", torch.float32
    ).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
