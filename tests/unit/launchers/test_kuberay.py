"""`cluster/kuberay-rayjob.yaml` against the fields of KubeRay's `ray.io/v1` RayJob that it uses, and against the job.

The schema below is written from KubeRay's API types (RayJobSpec, RayClusterSpec, HeadGroupSpec, WorkerGroupSpec):
a field that is not in it is refused, so a misspelt one cannot pass unseen, as it would on a real cluster.
"""

import copy
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[3]
IMAGE_ROOT = "/opt/rankray/"


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required.split(),
        "additionalProperties": False,
        "properties": properties,
    }


def items(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": schema}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY = {"anyOf": [COUNT, {"type": "string", "pattern": r"^[0-9]+(m|[KMGT]i?)?$"}]}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
METADATA = fields(name=TEXT, generateName=TEXT, labels=STRINGS, annotations=STRINGS)
CONTAINER = fields(
    "name image resources",
    name=TEXT,
    image=TEXT,
    env=items(
        fields(
            "name",
            name=TEXT,
            value=TEXT,
            valueFrom=fields(
                "secretKeyRef", secretKeyRef=fields("name key", name=TEXT, key=TEXT, optional=FLAG)
            ),
        )
    ),
    ports=items(fields("containerPort", containerPort=COUNT, name=TEXT)),
    resources=fields("requests limits", requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=items(fields("name mountPath", name=TEXT, mountPath=TEXT)),
)
POD_TEMPLATE = fields(
    "spec",
    metadata=METADATA,
    spec=fields(
        "containers",
        serviceAccountName=TEXT,
        nodeSelector=STRINGS,
        tolerations=items(
            fields(
                key=TEXT, operator={"enum": ["Exists", "Equal"]}, value=TEXT, effect={"enum": ["NoSchedule"]}
            )
        ),
        containers=items(CONTAINER),
        volumes=items(
            fields(
                "name emptyDir", name=TEXT, emptyDir=fields(medium={"const": "Memory"}, sizeLimit=QUANTITY)
            )
        ),
    ),
)
RAY_CLUSTER = fields(
    "rayVersion headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
    headGroupSpec=fields("rayStartParams template", rayStartParams=STRINGS, template=POD_TEMPLATE),
    workerGroupSpecs=items(
        fields(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=STRINGS,
            template=POD_TEMPLATE,
        )
    ),
)
RAY_JOB = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=METADATA,
    spec=fields(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        backoffLimit=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        runtimeEnvYAML=TEXT,
        rayClusterSpec=RAY_CLUSTER,
    ),
)


@pytest.fixture
def job() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / "kuberay-rayjob.yaml").read_text())


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_it_has_only_fields_that_kuberay_knows(job: dict[str, Any]) -> None:
    jsonschema.validate(job, RAY_JOB)


@pytest.mark.parametrize("path", [("spec", "backofLimit"), ("spec", "rayClusterSpec", "minReplicas")])
def test_a_misspelt_or_misplaced_field_is_refused(job: dict[str, Any], path: tuple[str, ...]) -> None:
    broken = copy.deepcopy(job)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = 1
    with pytest.raises(jsonschema.ValidationError, match=path[-1]):
        jsonschema.validate(broken, RAY_JOB)


def test_nobody_reaches_its_ray_without_the_token(job: dict[str, Any]) -> None:
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_nothing_is_scheduled_on_the_head(job: dict[str, Any]) -> None:
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_workers_ask_for_the_gpus_that_they_tell_ray_of(job: dict[str, Any]) -> None:
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        gpus = resources["requests"]["nvidia.com/gpu"]
        assert gpus == resources["limits"]["nvidia.com/gpu"] == int(group["rayStartParams"]["num-gpus"]) > 0
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_mounts_have_volumes_and_shared_memory_is_within_the_limit(job: dict[str, Any]) -> None:
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            limit_gi = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
            assert int(volumes["shm"]["sizeLimit"].removesuffix("Gi")) < limit_gi


def test_one_image_built_on_the_same_ray(job: dict[str, Any]) -> None:
    import rankray

    assert {container["image"] for container in containers(job)} == {
        f"REGISTRY/rankray:{rankray.__version__}"
    }
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text()
    base = re.search(r"^ARG RAY_IMAGE=rayproject/ray:([0-9.]+)-py311-gpu$", dockerfile, re.M)
    assert base is not None
    assert base[1] == job["spec"]["rayClusterSpec"]["rayVersion"]


def test_the_entrypoint_is_a_job_of_the_image_and_its_options_parse(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankray.cli import parse_synpic

    words = shlex.split(job["spec"]["entrypoint"])
    python, script, *options = words[words.index("--") + 1 :]
    assert python == "python"
    monkeypatch.chdir(ROOT)
    local = [word.removeprefix(IMAGE_ROOT) for word in options]
    assert (ROOT / script.removeprefix(IMAGE_ROOT)).is_file()
    settings = parse_synpic(local)
    assert settings.output.startswith("s3://"), "a pod's own disk goes with the pod"
    assert settings.prompts.path.startswith("s3://")


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (2, 2), (3, 0)])
def test_a_dataset_that_is_complete_is_not_tried_again(
    job: dict[str, Any], tmp_path: Path, code: int, ends: int
) -> None:
    """KubeRay's submitter has a bash read the entrypoint, `ray job submit` joins its words, and the head's shell reads
    those."""
    (tmp_path / "python").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@"\nexit {code}\n')
    (tmp_path / "python").chmod(0o755)
    words = shlex.split(job["spec"]["entrypoint"])
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run(
        ["sh", "-c", shlex.join(words)], env=env, capture_output=True, text=True, check=False
    )
    given = words[words.index("--") + 2 :]
    assert (ended.returncode, ended.stdout.splitlines()[: len(given)]) == (ends, given)
    assert ("not tried again" in ended.stdout) == (code == 3)


def test_a_retry_goes_on_in_the_same_place(job: dict[str, Any]) -> None:
    assert job["spec"]["backoffLimit"] >= 1
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert "name" not in job["metadata"], "generateName lets the same file be sent again"
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert set(environment) <= {"env_vars", "working_dir", "pip"}
    assert all(isinstance(value, str) for value in environment["env_vars"].values())
