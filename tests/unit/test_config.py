"""What the user writes: what is refused, in which words, and what counts as another dataset."""

from pathlib import Path
from typing import Any

import pytest

from rankray import config
from rankray.config import ConfigError, Faults, SynPicConfig
from rankray.config.evaluate import EvaluateConfig, MetricChoice

JOBS = Path(__file__).parents[2] / "jobs"


def tables(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "prompts": {"path": "p.txt"},
        "generators": [{"model": "sdxl"}, {"model": "sd3-medium", "samples": 2}],
        "rewards": [{"model": "pickscore"}],
        "output": "/o",
    }
    return {**base, **changes}


def built(**changes: Any) -> SynPicConfig:
    return config.build(SynPicConfig, tables(**changes))


def test_k_counts_samples() -> None:
    assert built().k == 3
    assert built(generators=[{"model": "sdxl", "samples": 16}]).k == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sede": 1},
            r"unknown key 'sede' \(did you mean 'seed'\?\); allowed there: output, images, execution",
        ),
        ({"prompts": {"path": "p", "pth": "x"}}, r"unknown key 'prompts.pth' \(did you mean 'path'\?\)"),
        ({"prompts": {}}, r"'prompts.path' is missing; give it in the TOML file or as --prompts.path"),
        ({"generators": [{"model": "sdxl", "pool": {"gpus": 1}}]}, r"unknown key 'generators.0.pool.gpus'"),
        (
            {"generators": [{"model": "sdxl"}]},
            r"^1 candidate a prompt; a ranking takes 2 to 16: give more or fewer \[\[generators\]\]",
        ),
        (
            {"generators": [{"model": "sdxl", "samples": 9}, {"model": "b", "samples": 8}]},
            "17 candidates a prompt",
        ),
        (
            {"generators": [{"model": "sdxl"}, {"model": "b"}], "rewards": [{"model": "b"}]},
            "'b' stands among the generators and among the rewards; take it out of one of them, or",
        ),
        (
            {"generators": [{"model": "sdxl"}, {"model": "sdxl"}]},
            "'sdxl' stands twice; give one of them another `name`",
        ),
        (
            {"generators": [{"model": "sdxl", "pool": {"min_size": 3, "max_size": 2}}]},
            "max_size 2 is below min_size 3",
        ),
        (
            {"generators": [{"model": "sdxl", "samples": 2, "pool": {"num_gpus": 1.5}}]},
            r"generators\.0\.pool\.num_gpus: 1\.5 GPUs: part of one is below 1, and several are whole; take 1 or 2",
        ),
        ({"seed": -1}, "seed = -1: input should be greater than or equal to 0"),
        ({"images": {"format": "gif"}}, "images.format = 'gif': input should be 'png', 'webp' or 'jpeg'"),
        ({"rewards": []}, r"^rewards = \[\]: give 1 or more$"),
    ],
)
def test_faults_are_one_clear_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        built(**changes)
    assert len(str(caught.value).splitlines()) == 1


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        built(sede=1, seed=-1)
    assert len(str(caught.value).splitlines()) == 2


def test_of_many_faults_twenty_are_named() -> None:
    """A list of 300 words where tables are due."""
    with pytest.raises(ConfigError) as caught:
        built(rewards=["x"] * 300)
    lines = str(caught.value).split("\n")
    assert (len(lines), lines[-1]) == (21, "and 280 more")
    assert all("rewards" in line for line in lines[:-1])
    faults = Faults()
    for number in range(21):
        with faults.kept():
            raise ConfigError(f"weight {number} is missing")
    with pytest.raises(ConfigError, match=r"weight 19 is missing\nand 1 more$"):
        faults.raise_any()


def test_unknown_keys_of_a_table_are_one_line() -> None:
    said = (
        r"^unknown key 'prompts.pth' \(did you mean 'path'\?\); allowed there: path, column, [a-z_, ]*\n"
        r"unknown keys 'sede' \(did you mean 'seed'\?\), 'steps'; allowed there: output, .*, reuse$"
    )
    with pytest.raises(ConfigError, match=said):
        built(sede=1, steps=2, prompts={"path": "p", "pth": "x"})


def test_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        built().seed = 1  # type: ignore[misc]


def test_identity_leaves_out_what_changes_no_row() -> None:
    base = built()
    pool = {"min_size": 2, "num_gpus": 0.5}
    same = built(
        generators=[{"model": "sdxl", "pool": pool, "batch_size": 4}, {"model": "sd3-medium", "samples": 2}],
        execution={"mode": "phases", "rows_per_block": 3},
        prices={"gpu_usd_per_hour": 2},
        output="/elsewhere",
    )
    assert same.identity() == base.identity()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        (
            {"generators": [{"model": "sdxl", "steps": 4}, {"model": "sd3-medium", "samples": 2}]},
            "generators.0.steps: None there, 4 here",
        ),
        ({"prompts": {"path": "q.txt"}}, "prompts.path: 'p.txt' there, 'q.txt' here"),
        ({"images": {"format": "webp"}}, "images.format: 'png' there, 'webp' here"),
    ],
)
def test_differing_keys_name_the_key(changes: dict[str, Any], line: str) -> None:
    assert config.differing_keys(built().identity(), built(**changes).identity()) == [line]


def test_a_key_that_is_gone_is_said_to_be_absent() -> None:
    assert config.differing_keys({"a": 1}, {"b": 2}) == ["a: 1 there, absent here", "b: absent there, 2 here"]


def test_what_a_model_was_run_with_is_compared_where_both_sides_know_it() -> None:
    """Versions that did not record it begin and finish work as they did; a user's option of that name is any other."""
    key, other = "generators.0.run_with.steps", "rewards.1.run_with.antialias"
    assert config.differing_keys({key: 50, "seed": 1}, {key: 28, other: True, "seed": 1}) == [
        f"{key}: 50 there, 28 here"
    ]
    assert config.differing_keys({"run_with.scheduler": None}, {"run_with.scheduler": "X"}) == [
        "run_with.scheduler: None there, 'X' here"
    ]
    own = "generators.0.options.run_with.x"
    assert config.differing_keys({}, {own: 1}) == [f"{own}: absent there, 1 here"]


def test_options_win_and_reach_every_field() -> None:
    merged = config.with_options(
        tables(), {"prompts.limit": 3, "execution.mode": "phases", "images.quality": 80}
    )
    settings = config.build(SynPicConfig, merged)
    assert (settings.prompts.limit, settings.execution.mode, settings.images.quality) == (3, "phases", 80)
    assert tables()["prompts"] == {"path": "p.txt"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("true", True), ("0.5", 0.5), ('[{model="a"}]', [{"model": "a"}]), ("a b", "a b"), ("", "")],
)
def test_option_text_is_toml_or_text(text: str, value: Any) -> None:
    assert config.parse_value(text) == value


def test_toml_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file at /.*missing\.toml"):
        config.read_toml(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="is a directory"):
        config.read_toml(tmp_path)
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        config.read_toml(tmp_path / "bad.toml")


@pytest.mark.parametrize("name", ["synpic.toml", "synpic-shapes.toml"])
def test_shipped_configurations_build(name: str) -> None:
    settings = config.build(SynPicConfig, config.read_toml(JOBS / name))
    assert settings.k == 4


def test_the_papers_configuration_is_the_papers() -> None:
    settings = config.build(SynPicConfig, config.read_toml(JOBS / "synpic.toml"))
    assert [choice.model for choice in settings.generators] == [
        "sdxl",
        "sd3-medium",
        "pixart-sigma",
        "stable-cascade",
    ]
    assert [choice.model for choice in settings.rewards] == [
        "hpsv2.1",
        "mps",
        "pickscore",
        "vqascore",
        "imagereward",
    ]
    assert settings.prompts.limit == 58000


@pytest.mark.parametrize("gpus", [0, 0.25, 1, 2, 8.0])
def test_parts_of_a_gpu_and_whole_ones_are_taken(gpus: float) -> None:
    assert config.Pool(num_gpus=gpus).num_gpus == gpus


def test_what_came_later_is_no_other_job_where_it_is_not_asked_for() -> None:
    assert not {"rewards.0.least", "prompts.block"} & built().identity().keys()
    asked = built(rewards=[{"model": "pickscore", "least": 0.0}], prompts={"path": "p.txt", "block": "b.txt"})
    assert (asked.identity()["rewards.0.least"], asked.identity()["prompts.block"]) == (0.0, "b.txt")


def test_a_metric_has_no_threshold() -> None:
    with pytest.raises(ConfigError, match="metric 'safety': `least` is a dataset's"):
        config.build(MetricChoice, {"model": "safety", "least": 0.5})


def test_a_fault_within_a_table_of_named_ones_is_a_line() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'prompts\.a\.b'; allowed there: path, column"):
        config.build(EvaluateConfig, {"prompts": {"a": {"b": [1]}}})
