"""A reward and a pipeline from a hub, by the hub's own client: loaded at their commits, refused in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Hub, asked, serving
from PIL import Image
from published_repositories import publish
from transformers import CLIPModel

from rankray.config import RewardChoice
from rankray.models import rewards
from rankray.models.rewards.mps import MpsConfig
from rankray.models.targets import load
from recipes.random_weights.pipelines import awaken, sdxl
from recipes.random_weights.rewards import clip_config, mps, save_processor

SIZES = MpsConfig.__dataclass_fields__

CODE = """
import json, sys
from dataclasses import replace
from PIL import Image
from rankray.config import ConfigError, GeneratorChoice, RewardChoice
from rankray.models import generators, rewards
from rankray.models.targets import load

def attempt(target, revision=None, then=lambda model: None):
    try:
        if revision is not None:  # as an actor finds it where it was another when the job began
            target = replace(target, kwargs={"spec": replace(target.kwargs["spec"], revision=revision)})
        return then(load(target, "cpu"))
    except ConfigError as error:
        return str(error)

reward = rewards.resolve(RewardChoice(model="clipscore", source="owner/clip", options={"vocabulary": 0}))
small = {"height": 64, "width": 64, "steps": 1, "batch_size": 1, "dtype": "float32"}
pipeline = generators.resolve(GeneratorChoice(model="sdxl", source="owner/sdxl", **small))
score = lambda model: model.score([Image.new("RGB", (9, 9), "red")], ["a red circle"]).tolist()
draw = lambda model: [image.size for image in model.generate(["a red circle"], [1])]
found = {"revisions": [reward.revision, pipeline.revision], "score": attempt(reward, then=score),
         "drawn": attempt(pipeline, then=draw), "reward, revision": attempt(reward, "0" * 40),
         "pipeline, revision": attempt(pipeline, "0" * 40)}
print("FOUND" + json.dumps(found))
"""

GATED = """
from dataclasses import replace
from rankray.config import ConfigError
from rankray.models.generators import GENERATORS
from rankray.models.rewards import REWARDS
from rankray.models.targets import Target, load

for name, row in (("owner/clip", REWARDS["clipscore"]), ("owner/sdxl", GENERATORS["shapes-sdxl"])):
    try:
        load(Target("x", row.target, {"spec": replace(row, source=name, revision="main")}), "cpu")
    except ConfigError as error:
        print("FOUND", error)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    torch.manual_seed(0)
    CLIPModel(clip_config()).save_pretrained(tmp_path / "clip")
    save_processor(tmp_path / "clip")
    pipe = sdxl()
    awaken(pipe)
    pipe.save_pretrained(tmp_path / "sdxl")
    with serving() as found:
        found.repositories |= {"owner/clip": tmp_path / "clip", "owner/sdxl": tmp_path / "sdxl"}
        yield found


@pytest.mark.slow
def test_loaded_at_their_commits(hub: Hub, tmp_path: Path) -> None:
    (line,) = asked(CODE, hub, tmp_path / "home")
    found = json.loads(line)
    assert found["revisions"] == [hub.sha("owner/clip"), hub.sha("owner/sdxl")]
    assert 0 <= found["score"][0] <= 2.5
    assert found["drawn"] == [[64, 64]]
    for name, key in (("owner/clip", "reward, revision"), ("owner/sdxl", "pipeline, revision")):
        assert found[key] == (
            f"hub repository '{name}' has no revision '{'0' * 40}'; name a branch, tag or commit of it"
        )


@pytest.mark.slow
def test_gated_files_are_one_line_in_an_actor_too(hub: Hub, tmp_path: Path) -> None:
    hub.gated |= {"owner/clip", "owner/sdxl"}
    for token, why in ((None, "no token is given here"), ("hf_other", "your token may not read it")):
        lines = asked(GATED, hub, tmp_path / f"home-{token}", **({"HF_TOKEN": token} if token else {}))
        assert [line.split(";")[0].strip() for line in lines] == [
            f"hub repository '{name}' is gated, and {why}" for name in ("owner/clip", "owner/sdxl")
        ]
    lines = asked(GATED, hub, tmp_path / "home-good", HF_TOKEN=TOKEN)
    assert not any("gated" in line for line in lines)


MPS = """
import json
from PIL import Image
from rankray.config import ConfigError, RewardChoice
from rankray.models import rewards
from rankray.models.targets import load

for source in ("owner/mps", "owner/clip"):
    options = {"processor": source, "vocabulary": 0}
    target = rewards.resolve(RewardChoice(model="mps", source=source, options=options))
    try:
        (score,) = load(target, "cpu").score([Image.new("RGB", (9, 9), "red")], ["a red circle"]).tolist()
        print("FOUND" + json.dumps([target.revision, score]))
    except ConfigError as error:
        print("FOUND" + json.dumps(str(error)))
"""


def test_a_converted_mps_is_loaded_from_a_repository(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mps").mkdir()
    mps(tmp_path / "mps")
    hub.repositories["owner/mps"] = tmp_path / "mps"
    options = {"processor": str(tmp_path / "mps"), "vocabulary": 0}
    here = rewards.resolve(RewardChoice(model="mps", source=str(tmp_path / "mps"), options=options))
    due = load(here, "cpu").score([Image.new("RGB", (9, 9), "red")], ["a red circle"]).tolist()
    one, other = map(json.loads, asked(MPS, hub, tmp_path / "home"))
    assert one == [hub.sha("owner/mps"), *due]
    assert other.endswith("/config.json is not of an MPS model: `mps` may hold " + ", ".join(sorted(SIZES)))
    sent = [file for file in hub.sent if file.startswith("owner/mps/")]
    assert sent.count("owner/mps/model.safetensors") == 1


PICKLED = """
import threading
import rankray.models.loading
from transformers import CLIPModel

CLIPModel.from_pretrained("openai/clip-vit-base-patch32", revision=__import__("sys").argv[1])
for thread in threading.enumerate():
    if thread is not threading.main_thread() and not thread.daemon:
        thread.join(60)
print("FOUND loaded")
"""


@pytest.mark.slow
def test_no_pull_request_is_asked_for_where_pickles_are_loaded(tmp_path: Path) -> None:
    with serving() as found:
        publish(found, tmp_path / "hub", ["clipscore"])
        name = "openai/clip-vit-base-patch32"
        assert asked(PICKLED, found, tmp_path / "home", found.sha(name)) == [" loaded"]
        assert f"{name}/pytorch_model.bin" in found.sent
        assert [path for path in found.asked if "discussions" in path or "convert" in path] == []
