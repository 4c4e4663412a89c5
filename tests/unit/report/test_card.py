"""A model's card: the hub's YAML, what a run knows of itself, and a snippet that draws with what lies there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_dataset
import torch
import yaml
from huggingface_hub import ModelCard

from rankray import store
from rankray.config import GeneratorChoice
from rankray.models import generators, rewards, targets
from rankray.models.denoisers import DENOISERS, family, parts
from rankray.report import card
from rankray.report.run import write_run_report


def info_of(spec: Any, **changes: Any) -> dict[str, Any]:
    row = DENOISERS[family(spec)]
    return {
        "rankray_version": "0.2.0",
        "created": "2026-01-02T03:04:05+00:00",
        "identity": {"steps": 40, "optimizer.learning_rate": 1e-4, "labels.reward": None},
        "dataset": "/data/set",
        "model": {
            "source": spec.source,
            "revision": "0123456789abcdef0123456789abcdef01234567",
            "licence": spec.licence,
            "pipeline": spec.pipeline,
            "denoiser": row.denoiser,
            "lora_form": row.lora_form,
            "load": {**({"variant": spec.variant} if spec.variant else {}), **spec.load},
            "call": {
                spec.steps_argument: 2,
                spec.guidance_argument: 2.5,
                "height": 64,
                "width": 64,
                **spec.call,
            },
        },
        "data": {
            "rows": 1834,
            "generators": [{"name": "a|b", "samples": 4}, {"name": "theirs", "samples": 0}],
            "rewards": [
                {"name": "r", "revision": "x", "licence": rewards.REWARDS["imagereward"].licence},
                {"name": "s", "revision": "y", "licence": rewards.REWARDS["pickscore"].licence},
            ],
        },
        "objective": {"name": "rank_dpo", "beta": 100.0, "options": {"nll": 100.0}},
        "lora_rank": 4,
        "lora_alpha": 6,
        "parameters": {"trained": 1234, "total": 5678},
        "steps": 40,
        "batch_size": 16,
        **changes,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "pipeline").mkdir()
    return tmp_path


def spec_of(name: str) -> Any:
    return targets.configured(GeneratorChoice(model=name), generators.GENERATORS, "generator")


def test_the_hub_reads_what_stands_in_front(run: Path) -> None:
    card.write_cards(str(run), info_of(spec_of("sdxl")))
    for name, relation in (("pipeline/README.md", "finetune"), ("README.md", "adapter")):
        text = (run / name).read_text()
        front = yaml.safe_load(text.split("---\n")[1])
        assert front == ModelCard(text).data.to_dict()
        assert front["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
        assert (front["base_model_relation"], front["license"]) == (relation, "openrail++")
        assert (front["library_name"], front["pipeline_tag"]) == ("diffusers", "text-to-image")
        assert ("lora" in front["tags"]) == (relation == "adapter")


def test_a_licence_that_the_hub_has_no_name_for_is_named(run: Path) -> None:
    card.write_cards(str(run), info_of(spec_of("sd3-medium")))
    text = (run / "pipeline" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == ModelCard(text).data.to_dict()
    assert (front["license"], front["license_name"]) == ("other", "stabilityai-ai-community")
    assert "| licence of the base model | stabilityai-ai-community |" in text


def test_what_is_not_known_is_no_claim(run: Path) -> None:
    """No licence that nobody stated, no base model that the hub does not have, no figures that nobody measured."""
    own = info_of(spec_of("sd3-medium"), lora_rank=0)
    own["model"] |= {"source": "own/directory", "revision": "sha256:ab", "licence": None}
    card.write_cards(str(run), own)
    text = (run / "pipeline" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert not {"license", "base_model", "base_model_relation"} & front.keys()
    assert "| licence of the base model | not stated |" in text
    assert "left out of training" not in text
    assert "Before and after" not in text
    assert not (run / "README.md").exists()


def test_what_is_known_stands_there(run: Path) -> None:
    validation = {
        "prompts": 32,
        "exported": {"step": 1030, "implicit_accuracy": 0.625, "loss": 0.5, "training_accuracy": None},
        "last": {"step": 1040, "implicit_accuracy": 0.55, "loss": 0.75, "training_accuracy": 0.9},
        "decision": "step 1030 is the best",
        "warnings": {"memorising": "take fewer steps"},
    }
    info = info_of(spec_of("sdxl"), validation=validation)
    card.keep_gain(str(run), info, {"checker": "+8.0 points"})
    card.write_cards(str(run), info)
    text = (run / "pipeline" / "README.md").read_text()
    due = [
        "| dataset | /data/set: 1,834 prompts |",
        "| pictures by | a\\|b (4 a prompt), theirs |",
        "| r | x | apache-2.0 |",
        "| s | y | not stated |",
        "| objective | rank_dpo, beta 100, nll = 100.0 |",
        "| trained | LoRA, rank 4, alpha 6; 1,234 parameters |",
        "| revision | 0123456789abcdef0123456789abcdef01234567 |",
        "## On 32 prompts left out of training",
        "| step | 1,030 | 1,040 |",
        "| implicit accuracy | 62.5 % | 55.0 % |",
        "| loss | 0.5 | 0.75 |",
        "| training accuracy | – | 90.0 % |",
        "Exported: step 1030 is the best.",
        "- memorising: take fewer steps",
        "| checker | +8.0 points |",
        "optimizer.learning_rate = 0.0001",
    ]
    assert [line for line in due if line not in text.splitlines()] == []
    assert "labels.reward" not in text


def test_a_card_that_is_written_again_keeps_its_gain(run: Path) -> None:
    """By the run's report, and before it goes to the hub; the gain of another run in the same place is none of it."""
    info = info_of(spec_of("sdxl"))
    card.keep_gain(str(run), info, {"checker": "+8.0 points"})
    write_run_report(str(run), info)
    for name in ("README.md", "pipeline/README.md"):
        assert "| checker | +8.0 points |" in (run / name).read_text()
    card.write_cards(str(run), {**info, "created": "2026-02-02T03:04:05+00:00"})
    assert "Before and after" not in (run / "README.md").read_text()


def test_a_datasets_licences_are_of_the_weights_that_ran(tmp_path: Path) -> None:
    """Not those of the rows by whose names other weights ran: recorded, or else told by what the settings say."""
    place = small_dataset.write(tmp_path / "d")
    dataset = store.read(place)
    dataset.info["generators"] = [
        {
            **{"name": "one", "model": "sdxl", "revision": "r1", "samples": 2, "licence": None},
            "run_with": {"steps": 50, "guidance": 5.0, "height": 768, "width": 1024, "dtype": "float16"},
        },
        {"name": "two", "model": "shapes-sd3", "revision": "sha256:2", "samples": 1, "licence": "apache-2.0"},
    ]
    names = {"r": "imagereward", "s": "pickscore", "t": "qalign-quality"}
    dataset.info["rewards"] = [{"name": n, "model": m, "revision": n} for n, m in names.items()]
    dataset.info["identity"] |= {
        **{"rewards.0.model": "imagereward", "rewards.0.name": "r", "rewards.0.source": "someone/own"},
        **{"rewards.1.model": "qalign-quality", "rewards.1.name": "t", "rewards.1.source": None},
    }
    text, _ = card.dataset_card(dataset, "me/set")
    due = [
        "| one | r1 | not stated | 50 steps, guidance 5, 1024 x 768, float16 | 2 |",
        "| two | sha256:2 | apache-2.0 | not recorded | 1 |",
        "| r | r | not stated |",
        "| s | s | not stated |",
        "| t | t | mit |",
    ]
    assert [line for line in due if line not in text.splitlines()] == []


@pytest.mark.parametrize(
    ("objective", "labels", "rewards_", "said"),
    [
        (
            "rank_dpo",
            {},
            "rs",
            "by RankDPO (https://arxiv.org/abs/2410.18013) on pictures that rewards have ranked,",
        ),
        (
            "dpo",
            {},
            "rs",
            "by Diffusion-DPO (https://arxiv.org/abs/2311.12908) on pictures that rewards have ranked,",
        ),
        ("kto", {}, ["human"], "by Diffusion-KTO on pictures that people have judged,"),
        (
            "sft",
            {},
            ["r", "human"],
            "on the best candidate of each prompt on pictures that rewards and people have",
        ),
        ("rank_dpo", {"labels.rewards": ["r"]}, ["r", "human"], "on pictures that rewards have ranked,"),
        ("rank_dpo", {"labels.aggregation": "random"}, "rs", "on pictures that chance has ranked,"),
        (
            "weighted_sft",
            {},
            ["r", "human"],
            "weighted by a reward's scores, on pictures that rewards have ranked,",
        ),
    ],
)
def test_a_card_says_by_what_it_was_trained_and_who_judged(
    objective: str, labels: dict[str, Any], rewards_: list[str], said: str
) -> None:
    info = info_of(spec_of("sdxl"), objective={"name": objective, "beta": 1.0, "options": {}, "reward": "r"})
    info["identity"] |= labels
    info["data"]["rewards"] = [{"name": name, "revision": "x", "licence": None} for name in rewards_]
    text = card.card(info, "pipeline", {})
    assert said in text
    tags = yaml.safe_load(text.split("---\n")[1])["tags"]
    assert ("rankdpo" in tags) == (objective == "rank_dpo")


def test_a_later_rounds_card_names_the_model_that_was_tuned_first(run: Path) -> None:
    info = info_of(spec_of("sdxl"))
    base = {key: info["model"][key] for key in ("source", "revision", "licence")}
    before = {
        "source": "/data/round-1/rankdpo/pipeline",
        "revision": "sha256:ab",
        "licence": None,
        "base": base,
    }
    info["model"] |= before
    card.write_cards(str(run), info)
    texts = [(run / name).read_text() for name in ("pipeline/README.md", "README.md")]
    fronts = [yaml.safe_load(text.split("---\n")[1]) for text in texts]
    assert "# A pipeline tuned from stabilityai/stable-diffusion-xl-base-1.0\n" in texts[0]
    assert "# LoRA adapters for a pipeline tuned from stabilityai/stable-diffusion-xl-base-1.0\n" in texts[1]
    assert [front.get("base_model") for front in fronts] == ["stabilityai/stable-diffusion-xl-base-1.0", None]
    assert [front["license"] for front in fronts] == ["openrail++"] * 2
    for text in texts:
        assert "| revision | 0123456789abcdef0123456789abcdef01234567 |" in text
        assert "| went on from | /data/round-1/rankdpo/pipeline, sha256:ab |" in text
    assert "from_pretrained('/data/round-1/rankdpo/pipeline'" in texts[1], "what the adapters fit"


def test_what_goes_to_the_hub_has_no_places_of_this_machine(run: Path) -> None:
    info = info_of(spec_of("sdxl"), lora_rank=0)
    info["model"] |= {"source": "/home/me/models/own", "revision": "sha256:ab", "licence": None}
    info["identity"] |= {"dataset": "/home/me/set", "model.source": "/home/me/models/own"}
    info["datasets"] = [
        {"dataset": "/home/me/set", "weight": 1.0},
        {"dataset": "s3://bucket/more", "weight": 3.0},
    ]
    text = card.public_card(str(run), info)
    assert text is not None
    assert "/home" not in text
    assert "# A pipeline tuned from own\n" in text
    assert "| dataset | 1 × set + 3 × s3://bucket/more: 1,834 prompts |" in text
    card.write_cards(str(run), info)
    assert "| dataset | 1 × /home/me/set + 3" in (run / "pipeline" / "README.md").read_text()
    (run / "pipeline" / "README.md").write_text("my notes\n")
    assert card.public_card(str(run), info) is None


def test_the_users_own_readme_stays(run: Path) -> None:
    (run / "README.md").write_text("my notes on rankray\n")
    for steps in (40, 41):
        card.write_cards(str(run), info_of(spec_of("sdxl"), steps=steps))
    assert (run / "README.md").read_text() == "my notes on rankray\n"
    assert "| steps | 41 of 16 prompts |" in (run / "pipeline" / "README.md").read_text()


def test_a_summary_of_an_older_version_has_no_card(tmp_path: Path) -> None:
    card.write_cards(str(tmp_path), {"rankray_version": "0.0.1", "steps": 3})
    assert list(tmp_path.iterdir()) == []


def test_licences_are_of_the_tables_own_weights() -> None:
    assert rewards.REWARDS["qalign-aesthetic"].licence == "mit"
    other = targets.configured(
        GeneratorChoice(model="sdxl", source="/own"), generators.GENERATORS, "generator"
    )
    assert other.licence is None
    assert spec_of("sdxl-turbo").licence is None, "another page than the model's that its row was made from"


@pytest.mark.parametrize("name", ["shapes-sdxl", "shapes-sd3", "shapes-pixart"])
def test_the_snippets_draw_with_what_lies_there(tmp_path: Path, name: str) -> None:
    """Run where the card lies, they give one picture: the pipeline's, and the published one's with the adapters."""
    spec = spec_of(name)
    denoiser: Any = parts.load_denoiser(spec, "cpu", torch.float32).eval()
    parts.add_lora(denoiser, spec, 4, 6)
    for key, parameter in denoiser.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    parts.export_lora(spec, denoiser, tmp_path, torch.float32)
    parts.merge_lora(denoiser)
    parts.export(spec, denoiser, tmp_path / "pipeline", torch.float32)
    card.write_cards(str(tmp_path), info_of(spec))
    code = "import numpy, os, torch\n"
    for place in (tmp_path, tmp_path / "pipeline"):
        snippet = (place / "README.md").read_text().split("```python\n")[1].split("```")[0]
        snippet = snippet.replace("image = pipe(", "torch.manual_seed(0)\nimage = pipe(")
        code += f"os.chdir({str(place)!r})\n{snippet}numpy.save('drawn.npy', image)\n"
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **paths}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    pictures = [np.load(place / "drawn.npy").astype(int) for place in (tmp_path, tmp_path / "pipeline")]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert pictures[0].std() > 1
