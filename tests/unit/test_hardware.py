"""The table of GPU types."""

import pytest

from rankray import hardware
from rankray.config import ConfigError


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


def test_nodes_are_filled_one_after_another() -> None:
    assert list(hardware.nodes_of(19)) == [8, 8, 3]
    assert list(hardware.nodes_of(1)) == [1]


def test_what_is_reached_of_the_peak() -> None:
    t4, h100 = hardware.gpu_type("T4"), hardware.gpu_type("H100")
    assert t4.flops_per_s("half") == pytest.approx(65e12 * 0.35)
    assert h100.flops_per_s("float32") == pytest.approx(67e12 * 0.22)
    assert h100.flops_per_s("tf32") == pytest.approx(494e12 * 0.22)
