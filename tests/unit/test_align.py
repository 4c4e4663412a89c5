"""What an alignment says before it begins."""

from pathlib import Path

import pytest

from rankray import align, config
from rankray.config import ConfigError
from rankray.config.rankdpo import AlignConfig

DEMO = Path(__file__).parents[2] / "jobs" / "align-demo.toml"


def test_it_says_what_it_is_about_to_do() -> None:
    settings = config.build(AlignConfig, config.read_toml(str(DEMO)))
    assert align.opening(settings, "/o").splitlines() == [
        "shapes-sdxl in 1 round, into /o",
        "  prompts   up to 200 of shapes:train, held out up to 300 of shapes:heldout",
        "  draws     shapes-sdxl, shapes-sd3, shapes-pixart, shapes-cascade",
        "  ranks     shapes-pickscore, shapes-clipscore, shapes-mps",
        "  trains    120 steps of 64 prompts, rank_dpo, 2 workers",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generators": [{"model": "shapes-sdxl"}]}, "1 candidate a prompt; a ranking takes 2 to"),
        (
            {"rewards": [{"model": "shapes-mps", "name": "model"}]},
            "held out: 'model' stands among the generators and",
        ),
        ({"rewards": [{"model": "shapes-mps"}] * 2}, "rewards: 'shapes-mps' stands twice"),
    ],
)
def test_what_a_part_refuses_is_refused_with_the_whole(changes: dict[str, object], said: str) -> None:
    """Before anything is drawn, and as the file's fault."""
    with pytest.raises(ConfigError, match=said):
        config.build(AlignConfig, {**config.read_toml(str(DEMO)), **changes})


def test_what_is_learnt_from_does_not_measure(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("a red circle\na blue square\na green ring\n")
    tables = config.read_toml(str(DEMO))
    tables["held_out"]["prompts"] = {"path": str(prompts)}
    tables["training"]["validation"] = {"share": 0.0}
    tables["prompts"] = {"path": str(prompts), "limit": 2}
    said = "^2 prompts of held_out.prompts also in prompts, first 'a blue square'; what a model learns from"
    with pytest.raises(ConfigError, match=said):
        align.check(config.build(AlignConfig, tables), str(tmp_path))
    other = tmp_path / "q.txt"
    other.write_text("a green ring\n")
    tables["held_out"]["prompts"] = {"path": str(other)}
    with pytest.raises(ConfigError, match=r"held_out\.prompts: one prompt says nothing of others"):
        align.check(config.build(AlignConfig, tables), str(tmp_path))
    other.write_text("a green ring\na green circle\n")
    tables["held_out"]["prompts"] = {"path": str(other)}
    align.check(config.build(AlignConfig, tables), str(tmp_path))


def test_too_few_prompts_to_validate_on_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    tables = config.read_toml(str(DEMO))
    tables["prompts"]["limit"] = 127
    said = r"^\[training\] validation would hold 64 of 127 prompts out and leave 63 to learn from; give more prompts"
    with pytest.raises(ConfigError, match=said):
        align.check(config.build(AlignConfig, tables), str(tmp_path))
    tables["prompts"]["limit"] = 128
    align.check(config.build(AlignConfig, tables), str(tmp_path))
