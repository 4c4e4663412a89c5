"""What a finished dataset says of its models, against what a plan would assume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_dataset
import tomli_w

from rankray.config import ConfigError, PricesConfig, SynPicConfig
from rankray.data.cost import ActorUsage, ledger
from rankray.models.hardware import GPU_TYPES
from rankray.plan.measured import read_measured
from rankray.synpic.forecast import Measured, of_actors

A100 = "NVIDIA A100-SXM4-80GB"


def settings(**sdxl: object) -> SynPicConfig:
    return SynPicConfig.model_validate(
        {
            "prompts": {"path": "p.txt"},
            "generators": [{"model": "sdxl", **sdxl}, {"model": "sd15"}],
            "rewards": [{"model": "pickscore"}, {"model": "mps"}],
            "output": "/o",
        }
    )


def used(
    name: str, kind: str, gpus: float, gpu: str = A100, busy_s: float = 300.0, peak_gb: float = 30.0
) -> ActorUsage:
    held = {"gpu": gpu, "gpu_gb": 85.0, "peak_gpu_gb": peak_gb}
    return ActorUsage(name, kind, f"{name}-1", busy_s, 5.0, 600.0, 100, 0, 0, gpus, 1.0, **held)


def dataset(place: Path, usage: list[ActorUsage], config: SynPicConfig) -> str:
    path = small_dataset.write(place)
    info = json.loads((place / "dataset.json").read_text())
    info["identity"] = config.identity()
    info["cost"] = ledger(usage, PricesConfig())
    (place / "dataset.json").write_text(json.dumps(info))
    written = config.model_dump(mode="json", exclude_none=True)
    (place / "config.toml").write_text(tomli_w.dumps(written))
    return path


def test_seconds_are_of_a_whole_gpu_and_memory_is_the_peak(tmp_path: Path) -> None:
    usage = [used("sdxl", "generator", 1.0), used("pickscore", "reward", 0.25, busy_s=8.0, peak_gb=5.0)]
    found, lines = read_measured(dataset(tmp_path, usage, settings()), settings())
    gpu = GPU_TYPES["A100-80"]
    assert found == {"sdxl": Measured(3.0, gpu, 30.7), "pickscore": Measured(0.02, gpu, 5.7)}
    assert lines == []


@pytest.mark.parametrize(
    ("theirs", "ours", "alike"), [(1, 1, True), (1, 16, False), (1, None, False), (None, 8, False)]
)
def test_memory_is_of_its_batch(tmp_path: Path, theirs: int | None, ours: int | None, alike: bool) -> None:
    """That of one picture would let sixteen onto any GPU; speed is taken whatever the batch."""
    path = dataset(tmp_path, [used("sdxl", "generator", 1.0)], settings(batch_size=theirs))
    found, _ = read_measured(path, settings(batch_size=ours))
    assert found == {"sdxl": Measured(3.0, GPU_TYPES["A100-80"], 30.7 if alike else None)}


def test_memory_of_a_batch_that_is_not_known_or_did_not_fit_is_none(tmp_path: Path) -> None:
    path = dataset(tmp_path, [used("sdxl", "generator", 1.0)], settings(batch_size=16))
    info = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**info, "smaller_batches": {"sdxl": 4}}))
    assert read_measured(path, settings(batch_size=16))[0]["sdxl"].memory_gb is None
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    assert read_measured(path, settings(batch_size=16))[0]["sdxl"].memory_gb == 30.7
    (tmp_path / "config.toml").unlink()  # of a dataset from a hub
    assert read_measured(path, settings(batch_size=16))[0]["sdxl"].memory_gb is None


def test_seconds_of_a_cpu_job(tmp_path: Path) -> None:
    usage = [used("sdxl", "generator", 0.0, gpu="", busy_s=30.0, peak_gb=0.0)]
    found, _ = read_measured(dataset(tmp_path, usage, settings()), settings())
    assert found == {"sdxl": Measured(0.3)}


def test_other_settings_are_another_speed(tmp_path: Path) -> None:
    usage = [used("sdxl", "generator", 1.0), used("mps", "reward", 0.5)]
    found, (line,) = read_measured(dataset(tmp_path, usage, settings(steps=20)), settings(source="x/y"))
    assert set(found) == {"mps"}
    assert line == "'sdxl' was measured with other settings: steps: 20 there, None here"


def test_a_gpu_that_nobody_knows_is_said(tmp_path: Path) -> None:
    path = dataset(tmp_path, [used("sdxl", "generator", 1.0, gpu="Voodoo 2")], settings())
    with pytest.raises(ConfigError, match=r"measured none of these models; 'sdxl' was measured on Voodoo 2"):
        read_measured(path, settings())


def test_no_dataset_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing measured: "):
        read_measured(str(tmp_path), settings())


def benchmark(place: Path, **changes: object) -> str:
    row = {
        "model": "sdxl",
        "options": {},
        "kind": "generator",
        "images_per_s": 0.25,
        "batch_size": 8,
        "dtype": "float16",
        "size": "full",
        "steps": 50,
        "pixels": 1024,
        "peak_memory_gb": 33.0,
        "gpu": "NVIDIA H100 80GB HBM3",
    }
    fused = {**row, "options": {"fused": True}, "images_per_s": 0.5}
    more = {
        "sdxl-fused": fused,
        "sdxl-batch-16": {**row, "batch_size": 16, "images_per_s": 0.4},
        "png": {"error": ""},
    }
    more = {} if changes else more
    (place / "full-size.json").write_text(json.dumps({"parts": {"sdxl": {**row, **changes}, **more}}))
    return str(place / "full-size.json")


def test_a_benchmark_measures_too(tmp_path: Path) -> None:
    path, h100 = benchmark(tmp_path), GPU_TYPES["H100"]
    assert read_measured(path, settings()) == ({"sdxl": Measured(4.0, h100, 33.7)}, [])
    assert read_measured(path, settings(batch_size=4))[0] == {"sdxl": Measured(4.0, h100, None)}
    assert read_measured(path, settings(steps=50, height=1024))[0] == {"sdxl": Measured(4.0, h100, 33.7)}


def test_a_rung_is_the_speed_of_who_takes_its_options(tmp_path: Path) -> None:
    path = benchmark(tmp_path)
    assert read_measured(path, settings(options={"fused": True}))[0]["sdxl"].seconds == 2.0
    assert read_measured(path, settings(batch_size=16))[0]["sdxl"].seconds == 2.5
    with pytest.raises(ConfigError, match="compile"):
        read_measured(path, settings(options={"compile": True}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "tiny"}, "measured with other settings: size: 'tiny' there, 'full' here"),
        ({"steps": 20, "gpu": None}, "measured on a CPU, which is no GPU type known here"),
    ],
)
def test_what_a_benchmark_measured_otherwise_is_left_out(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_measured(benchmark(tmp_path, **changes), settings())


def test_another_json_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(
        ConfigError, match=r"other\.json is no result of benchmarks/full_size\.py \(TypeError\)"
    ):
        read_measured(str(tmp_path / "other.json"), settings())


def test_actors_of_unnamed_gpus_are_measured_for_their_own_cluster(tmp_path: Path) -> None:
    place = dataset(
        tmp_path, [used("sdxl", "generator", 1.0, gpu=""), used("mps", "reward", 0.25)], settings()
    )
    assert of_actors(place, []) == ({"sdxl": 3.0, "mps": 3.0}, None)
    info = json.loads((tmp_path / "dataset.json").read_text())
    starts = {"sdxl": {"actors": 2, "start_s": 30.0, "load_s": 20.0}, "mps": {"start_s": 12.0}}
    info["throughput"] = {"start": {"models": starts}}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    own = [used("sdxl", "generator", 1.0, busy_s=200.0)]
    assert of_actors(place, own) == ({"sdxl": 2.0, "mps": 3.0}, 30.0), "what the job saw itself comes first"
    assert of_actors(None, own) == ({"sdxl": 2.0}, None)
    with pytest.raises(ConfigError, match="nothing measured"):
        of_actors(str(tmp_path / "elsewhere"), [])
