"""`cluster/aws.yaml` against the schema and the preparation of the Ray that is installed, and against itself."""

import copy
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[3]
A100_NODES = {"p4d.24xlarge": {"CPU": 96, "GPU": 8}, "p4de.24xlarge": {"CPU": 96, "GPU": 8}}


@pytest.fixture
def launcher() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())


def test_ray_accepts_it(launcher: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(launcher))
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


def test_ray_refuses_it_with_a_key_that_does_not_exist(launcher: dict[str, Any]) -> None:
    launcher["available_node_types"]["head"]["spot"] = True
    with pytest.raises(jsonschema.ValidationError, match="spot"):
        validate_config(prepare_config(launcher))


def test_the_head_has_no_gpu_and_takes_no_work(launcher: dict[str, Any]) -> None:
    head = launcher["available_node_types"][launcher["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"], "a head on spot would end the job with it"


def test_workers_are_a100_nodes_and_scale_from_zero(launcher: dict[str, Any]) -> None:
    types = {
        name: t for name, t in launcher["available_node_types"].items() if name != launcher["head_node_type"]
    }
    for node in types.values():
        assert node["resources"] == A100_NODES[node["node_config"]["InstanceType"]]
        assert node["min_workers"] == 0
        assert node["max_workers"] <= launcher["max_workers"]
    spot = {
        n for n, t in types.items() if t["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
    }
    assert any(types[name]["max_workers"] > 0 for name in spot)


def test_every_node_runs_one_ray_and_one_machine_image(launcher: dict[str, Any]) -> None:
    images = {launcher["docker"]["image"], launcher["docker"]["head_image"]}
    assert {image.rpartition("-")[0] for image in images} == {f"rayproject/ray:{pinned_ray()}-py311"}
    assert {t["node_config"]["ImageId"] for t in launcher["available_node_types"].values()} == {
        "ami-00000000000000000"
    }


def test_every_node_is_told_that_there_is_a_token(launcher: dict[str, Any]) -> None:
    assert "/home/ray/.ray/auth_token" in launcher["file_mounts"]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in launcher[key][-1], key


def test_start_commands_are_options_of_this_ray(launcher: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    for line in [*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]]:
        for command in line.split(";"):
            words = shlex.split(command)
            if words[-2:] == ["ray", "stop"] or "start" not in words:
                continue
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given <= known, f"ray start has no {given - known}"


def pinned_ray() -> str:
    """The Ray of the images: what the wheel asks for at least, so that pip leaves the image's own in place."""
    requirement = next(
        line
        for line in (ROOT / "pyproject.toml").read_text().splitlines()
        if line.strip().startswith('"ray[')
    )
    floor = requirement.split(">=")[1].strip('", ')
    version = yaml.safe_load((ROOT / "cluster" / "kuberay-rayjob.yaml").read_text())["spec"][
        "rayClusterSpec"
    ]["rayVersion"]
    assert version.startswith(f"{floor}.")
    assert [int(part) for part in ray.__version__.split(".")[:2]] >= [
        int(part) for part in floor.split(".")[:2]
    ]
    return str(version)
