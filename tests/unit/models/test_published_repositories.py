"""Every model of the tables, from repositories laid out as published: it loads, works, and nothing else is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Hub, asked, serving
from published_repositories import CERTAIN, FILES, OF, lay_out, publish

NAMES = (
    *("sdxl", "sd3-medium", "pixart-sigma", "stable-cascade", "pickscore", "clipscore", "qalign-quality"),
    *("geneval", "dpg", "compbench"),
)
"""Those that need no package of their own; the others: `slow`."""

ALL = """
import json, sys
from PIL import Image
from rankray import evals
from rankray.models import generators, rewards
from rankray.config import ConfigError, EvalChoice, GeneratorChoice, RewardChoice
from rankray.evals import EVALS
from rankray.models.rewards import REWARDS
from rankray.models.targets import load

SIZES = {
    "pixart-sigma": {"call": {"use_resolution_binning": False}},
    "stable-cascade": {
        "after_load": {"prior_pipe": {"resolution_multiple": 8.0}, "decoder_pipe": {"latent_dim_scale": 2.0}}
    },
}
PICTURES = [Image.new("RGB", (64, 48), "red"), Image.effect_noise((40, 64), 90).convert("RGB")]
ITEMS = {
    "geneval": {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]},
    "dpg": {"item_id": "1", "questions": {"1": {"text": "a circle?", "category": "x", "parents": []}}},
    "compbench": {"category": "non_spatial", "action": "a red circle"},
}

def resolved(name):
    if name in EVALS:
        sizes = {key: None for key in EVALS[name].options if key.endswith("vocabulary")}
        sizes |= {"size": {}} if name == "geneval" else {}
        return evals.resolve(EvalChoice(model=name, options=sizes), [evals.Item("a red circle", ITEMS[name])])
    if name in REWARDS:
        sizes = {key: 0 for key in REWARDS[name].options if key == "vocabulary"}
        return rewards.resolve(RewardChoice(model=name, options={**sizes, **SIZES.get(name, {})}))
    small = {"height": 64, "width": 64, "steps": 1, "batch_size": 1, "dtype": "float32"}
    return generators.resolve(GeneratorChoice(model=name, **small, options=SIZES.get(name, {})))

for name in sys.argv[1:]:
    try:
        target = resolved(name)
        model = load(target, "cpu")
        if name in EVALS:
            made = [one.score for one in model.judge(PICTURES, ["a red circle"] * 2)]
        elif name in REWARDS:
            made = model.score(PICTURES, ["a red circle"] * 2).tolist()
        else:
            made = [list(one.size) for one in model.generate(["a red circle"], [1])]
        print("FOUND" + json.dumps({"name": name, "revision": target.revision, "made": made}))
    except ConfigError as error:
        print("FOUND" + json.dumps({"name": name, "refused": str(error)}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving() as found:
        publish(found, tmp_path_factory.mktemp("hub"), NAMES)
        yield found


@pytest.fixture(scope="module")
def everything(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """What came of each model, in one process with an empty cache, and what was sent to it."""
    before = len(hub.sent)
    lines = asked(ALL, hub, tmp_path_factory.mktemp("home"), *NAMES, HF_TOKEN=TOKEN)
    return {found["name"]: found for found in map(json.loads, lines)}, hub.sent[before:]


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_as_it_is_published(everything: tuple[dict[str, Any], list[str]], name: str) -> None:
    found = everything[0][name]
    assert "refused" not in found, found
    if name in NAMES[:4]:
        assert found["made"] == [[64, 64]]
    else:
        assert all(isinstance(score, float) for score in found["made"])
        assert len(found["made"]) == 2


def test_both_of_stable_cascade_s_repositories_are_recorded(
    hub: Hub, everything: tuple[dict[str, Any], list[str]]
) -> None:
    due = f"{hub.sha('stabilityai/stable-cascade')}; prior={hub.sha('stabilityai/stable-cascade-prior')}"
    assert everything[0]["stable-cascade"]["revision"] == due


def test_a_reference_without_safetensors_is_not_the_one_that_is_loaded(
    hub: Hub, everything: tuple[dict[str, Any], list[str]]
) -> None:
    clip = "openai/clip-vit-base-patch32"
    assert "model.safetensors" not in FILES[clip][""].split()
    commit = hub.sha(clip, "refs/pr/15")
    assert everything[0]["clipscore"]["revision"] == commit
    assert f"clip={commit} " in everything[0]["compbench"]["revision"]


def test_nothing_is_fetched_that_is_not_read(everything: tuple[dict[str, Any], list[str]]) -> None:
    _, sent = everything
    # Q-Align's repository has its weights as pickles of plain tensors alone.
    others = [one for one in sent if not one.startswith("q-future/")]
    unread = (".bin", ".onnx", ".onnx_data", ".msgpack", ".xml", ".h5", ".pb", ".py", ".pt", ".ot")
    assert [one for one in others if one.endswith(unread)] == []
    assert not any(one.endswith(".py") for one in sent)
    weights = [one for one in sent if one.endswith((".safetensors", ".bin"))]
    assert len(weights) == len(set(weights)) > 20  # each once


def test_a_missing_prior_is_named(hub: Hub, tmp_path: Path) -> None:
    without = {name: place for name, place in hub.repositories.items() if not name.endswith("-prior")}
    with serving() as other:
        other.repositories |= without
        (line,) = asked(ALL, other, tmp_path, "stable-cascade")
    said = json.loads(line)["refused"]
    assert said.startswith(
        "generator 'stable-cascade': there is no hub repository 'stabilityai/stable-cascade-prior'"
    )


TOGETHER = """
import json, multiprocessing
from PIL import Image
from transformers import CLIPModel
from rankray.models import rewards
from rankray.config import RewardChoice
from rankray.models.targets import load

target = rewards.resolve(RewardChoice(model="pickscore", options={"vocabulary": 0}))
forked = multiprocessing.get_context("fork")
start, said = forked.Barrier(4), forked.Queue()

def actor():
    start.wait()
    said.put(load(target, "cpu").score([Image.new("RGB", (64, 48), "red")], ["a red circle"]).tolist())

actors = [forked.Process(target=actor) for _ in range(4)]
for one in actors:
    one.start()
print("FOUND" + json.dumps([said.get(timeout=300) for _ in actors]))
for one in actors:
    one.join()
"""


def test_actors_of_a_node_that_start_together_fetch_once(hub: Hub, tmp_path: Path) -> None:
    before = len(hub.sent)
    (line,) = asked(TOGETHER, hub, tmp_path)
    scores = json.loads(line)
    assert scores == [scores[0]] * 4
    weights = [one for one in hub.sent[before:] if one.endswith(".safetensors")]
    assert weights == ["yuvalkirstain/PickScore_v1/model.safetensors"]


def test_the_lists_are_of_what_the_rows_ask_for(tmp_path: Path) -> None:
    from rankray.evals import EVALS
    from rankray.models.generators import GENERATORS
    from rankray.models.rewards import REWARDS

    for name, repositories in OF.items():
        row: Any = {**GENERATORS, **REWARDS, **EVALS}[name]
        named = set(row.models.values()) if name in EVALS else {row.source}
        named |= set(row.connected.values()) if name in GENERATORS else set()
        named |= {row.options[part] for part in row.parts if row.options[part]} if name in REWARDS else set()
        known = {"THUDM/ImageReward": "zai-org/ImageReward"}
        assert {known.get(one, one) for one in named if not one.startswith("~")} == set(repositories), name
    assert FILES.keys() >= CERTAIN


def test_shards_variants_and_what_lies_beside(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    given = tmp_path / "given" / "text_encoder_3"
    given.mkdir(parents=True)
    whole = {key: torch.randn(2, 2) for key in "abcde"}
    save_file(whole, given / "model.safetensors")
    lay_out("stabilityai/stable-diffusion-3-medium-diffusers", tmp_path / "given", tmp_path / "made")
    place = tmp_path / "made" / "text_encoder_3"
    index = json.loads((place / "model.safetensors.index.fp16.json").read_text())["weight_map"]
    assert index == {key: f"model.fp16-0000{1 + n % 2}-of-00002.safetensors" for n, key in enumerate("abcde")}
    for key, file in index.items():
        assert torch.equal(load_file(place / file)[key], whole[key].half())
    assert (tmp_path / "made" / "README.md").read_text().startswith("another format")
