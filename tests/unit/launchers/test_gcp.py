"""`cluster/gcp.yaml` against the schema and the preparation of the Ray that is installed, and against `aws.yaml`."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[3] / "cluster"


@pytest.fixture
def launcher() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "gcp.yaml").read_text())


def test_ray_accepts_it(launcher: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(launcher))
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


def test_ray_refuses_it_with_a_key_that_does_not_exist(launcher: dict[str, Any]) -> None:
    launcher["available_node_types"]["head"]["preemptible"] = True
    with pytest.raises(jsonschema.ValidationError, match="preemptible"):
        validate_config(prepare_config(launcher))


def test_only_workers_are_spot_and_have_gpus(launcher: dict[str, Any]) -> None:
    types = launcher["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert "scheduling" not in types["head"]["node_config"]
    spot = {
        name for name, t in types.items() if {"preemptible": True} in t["node_config"].get("scheduling", [])
    }
    assert spot == {"a100-80gb-spot"}
    for name in set(types) - {"head"}:
        assert types[name]["node_config"]["machineType"] == "a2-ultragpu-8g"
        assert types[name]["resources"] == {"CPU": 96, "GPU": 8}
        assert {"onHostMaintenance": "TERMINATE"} in types[name]["node_config"]["scheduling"]
        assert types[name]["min_workers"] == 0
        assert types[name]["max_workers"] <= launcher["max_workers"]


def test_nodes_run_what_they_run_on_aws(launcher: dict[str, Any]) -> None:
    """The image, the wheel, the token and the start commands."""
    aws = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    same = ("docker", "file_mounts", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    assert {key: launcher[key] for key in same} == {key: aws[key] for key in same}
