"""The table of GPU types."""

import pytest
import torch

from rankray.config import ConfigError
from rankray.models import hardware, targets


def test_a_type_is_found_whatever_its_case() -> None:
    assert hardware.gpu_type("a100-80").memory_gb == 80
    assert hardware.gpu_type("T4").bfloat16 is False


@pytest.mark.parametrize(("name", "near"), [("H10", "H100"), ("A100-88", "A100-80"), ("L40", "L40S")])
def test_an_unknown_type_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"unknown GPU type '{name}' \(did you mean '{near}'\?\); known: A100-40"
    ):
        hardware.gpu_type(name)


@pytest.mark.parametrize(
    ("name", "memory_gb", "found"),
    [
        ("NVIDIA A100-SXM4-80GB", 85.0, "A100-80"),
        ("NVIDIA A100-SXM4-40GB", 42.3, "A100-40"),
        ("NVIDIA H100 80GB HBM3", 85.0, "H100"),
        ("NVIDIA H200", 150.0, "H200"),
        ("NVIDIA L40S", 47.7, "L40S"),
        ("NVIDIA L4", 23.6, "L4"),
        ("Tesla T4", 15.8, "T4"),
        ("A100", None, "A100-80"),
        ("NVIDIA A100-PCIE-40GB", None, "A100-40"),
        ("NVIDIA GeForce RTX 4090", 25.0, None),
    ],
)
def test_a_device_s_name_says_its_type(name: str, memory_gb: float | None, found: str | None) -> None:
    gpu = hardware.by_device(name, memory_gb)
    assert (gpu and gpu.name) == found


def test_what_is_reached_of_the_peak() -> None:
    t4, h100 = hardware.gpu_type("T4"), hardware.gpu_type("H100")
    assert t4.flops_per_s("half") == pytest.approx(65e12 * 0.35)
    assert h100.flops_per_s("float32") == pytest.approx(67e12 * 0.22)
    assert h100.flops_per_s("tf32") == pytest.approx(494e12 * 0.22)


def test_a_device_that_is_not_there_is_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    missing = targets.Target("m", "no_such_package:Model")
    with pytest.raises(ConfigError, match=r"a GPU was asked for, and there is none here .*rehearse = true$"):
        targets.load(missing, "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"CUDA_VISIBLE_DEVICES is empty here, .*rehearse = true$"):
        targets.load(missing, "cuda:1")
    with pytest.raises(ConfigError, match="no package 'no_such_package'"):
        targets.load(missing, "cpu")


# What torch 2.14 raises, word by word.
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)
OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)


@pytest.mark.parametrize(
    ("said", "visible", "told"),
    [
        (OLD, "0", f"too old for torch {torch.__version__}: it knows CUDA 11.4, torch was built for "),
        (
            "Torch not compiled with CUDA enabled",
            None,
            "was built without CUDA; install one with it, or to rehearse",
        ),
        (NO_DRIVER, None, "there is none here (Found no NVIDIA driver on your system); to rehearse"),
        (
            "No CUDA GPUs are available",
            "3",
            "(No CUDA GPUs are available, CUDA_VISIBLE_DEVICES = '3'); to rehearse",
        ),
        (
            "No CUDA GPUs are available",
            "",
            "CUDA_VISIBLE_DEVICES is empty here, which hides all of them; unset it",
        ),
        ("", None, "there is none here (torch finds none); to rehearse"),
    ],
)
def test_why_there_is_no_gpu_is_one_line(said: str, visible: str | None, told: str) -> None:
    line = hardware.no_cuda(said, visible)
    assert told in line
    assert "\n" not in line


def test_a_node_s_gpus_by_the_resource_of_their_name() -> None:
    """A name of two types is the larger where memory may be refused, the smaller where it is claimed."""
    a100 = ["CPU", "accelerator_type:A100"]
    assert hardware.by_resources(a100) == hardware.GPU_TYPES["A100-80"]
    assert hardware.by_resources(a100, min) == hardware.GPU_TYPES["A100-40"]
    for unsure in (min, max):
        assert hardware.by_resources(["accelerator_type:A100-40G"], unsure) == hardware.GPU_TYPES["A100-40"]
        assert hardware.by_resources(["accelerator_type:A100-80G"], unsure) == hardware.GPU_TYPES["A100-80"]
        assert hardware.by_resources([*a100, "accelerator_type:L4"], unsure) is None
        assert hardware.by_resources(["GPU"], unsure) is None
