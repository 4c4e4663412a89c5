"""What Prometheus finds at Ray's own address of a job: its counts, as the job's summary has them."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from conftest import BAD, REHEARSE, Ended, in_this_process, toy_options
from prometheus_client.parser import text_string_to_metric_families
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

WAIT_S = 60.0
"""Ray's workers send what they are told every ten seconds."""


def served(output: str) -> dict[tuple[str, str], float]:
    """(metric, model) -> its value, of one output on all nodes."""
    found: dict[tuple[str, str], float] = {}
    for node in ray.nodes():
        place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(place, timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        for sample in (sample for family in families for sample in family.samples):
            if sample.labels.get("output") == output:
                key = (sample.name.removeprefix("ray_rankray_"), sample.labels["model"])
                found[key] = found.get(key, 0.0) + sample.value
    return found


def until(output: str, due: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """What is served once `due` is, or after a while."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = served(output)
        if found.items() >= due.items() or time.monotonic() > deadline:
            return found
        time.sleep(1)


def test_a_datasets_counts_are_served_by_model(
    job: Callable[..., Ended], cluster: Cluster, tmp_path: Path
) -> None:
    output, prompts = tmp_path / "é", tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt in ("a", "b", "c", "d", "e", BAD[0])))
    priced = ("--prices.gpu_usd_per_hour", "3600", "--execution.tolerance", "1")
    ended = job("synpic", "--output", str(output), *toy_options(prompts, *priced))
    assert ended.code == 0, ended.text
    bill = json.loads((output / "dataset.json").read_text())["cost"]["models"]
    name = str(output).encode("ascii", "backslashreplace").decode()
    # Three pictures of six prompts, of which one prompt's fail, judged by two rewards.
    due = {("items_total", "noise"): 12.0, ("items_total", "coarse"): 6.0}
    due |= {("items_total", reward): 18.0 for reward in ("red", "green")}
    due |= {("failures_total", "noise"): 2.0, ("failures_total", "coarse"): 1.0}
    due |= {("left", model): 0.0 for model in ("noise", "coarse", "red", "green")}
    due |= {("queue", model): 0.0 for model in ("coarse", "red", "green")}
    found = until(name, due)
    assert {key: found.get(key) for key in due} == due
    for row in bill:
        assert found["usd_total", row["model"]] == pytest.approx(row["usd"], rel=0.5)
        assert found["alive_seconds_total", row["model"]] == pytest.approx(row["alive_s"], rel=0.5)
        assert 0 < found["busy_seconds_total", row["model"]] <= row["busy_s"]


def test_a_trainings_figures_are_served(
    job: Callable[..., Ended], cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    options = {
        "dataset": dataset, "output": tmp_path / "run", "model.model": "shapes-sdxl", "steps": 3, "batch_size": 4,
        "workers.num_cpus": 0.5, "prices.cpu_usd_per_hour": 3600, "validation.share": 0, "checkpoints.every": 3,
        "checkpoints.sample_every": 0,
    }  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    with in_this_process():
        ended = job("rankdpo", *words, *REHEARSE)
    assert ended.code == 0, ended.text
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    due = {("items_total", "shapes-sdxl"): 12.0, ("left", "shapes-sdxl"): 0.0, ("step", "shapes-sdxl"): 3.0}
    due |= {(key, "shapes-sdxl"): last[key] for key in ("loss", "implicit_accuracy", "learning_rate")}
    found = until(str(tmp_path / "run"), due)
    assert {key: found.get(key) for key in due} == due
    assert found["usd_total", "shapes-sdxl"] == pytest.approx(last["usd"], abs=1e-3)
