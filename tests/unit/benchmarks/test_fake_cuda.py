"""The fake device refuses what a GPU refuses, and counts what is alive; each refusal is planted here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import DOUBLES, fake_cuda
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Planted(nn.Module):
    """Two layers, and between them what `fault` does to the tensor that passes."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.first, self.second, self.fault = nn.Linear(8, 8), nn.Linear(8, 8), fault
        self.left_behind = torch.ones(8)  # no buffer: `.to` does not move it

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.fault == "cpu":
            x = x.cpu()
        elif self.fault == "left behind":
            x = x * self.left_behind
        elif self.fault == "float32":
            x = x.float()
        elif self.fault == "float64":
            x = (x[:, :, None].double() * torch.ones(DOUBLES, device=x.device))[..., 0].half()
        elif self.fault == "numpy":
            x = torch.from_numpy(x.numpy())
        elif self.fault == "generator":
            x = x + torch.rand(8, device=x.device, dtype=x.dtype, generator=torch.Generator("cpu"))
        elif self.fault == "shape":
            x = x[:, 1:]
        made: Tensor = self.second(x)
        return made


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("cpu", "devices"),
        ("left behind", "devices"),
        ("float32", "float16 and torch.float32; one dtype is due"),
        ("float64", r"makes float64\[3, 8, 4096\] on the device"),
        ("numpy", "can't convert cuda:0 device type tensor to numpy"),
        ("generator", "Expected a 'cuda' device type for generator"),
        ("shape", "dim"),
    ],
)
def test_a_planted_fault_raises(fault: str, says: str, grad: bool) -> None:
    with fake_cuda():
        model = Planted(fault).to("cuda", torch.float16)
        for parameter in model.parameters():
            parameter.requires_grad_(grad and fault != "numpy")
        x = torch.ones(3, 8, device="cuda", dtype=torch.float16)
        with torch.inference_mode(not grad), pytest.raises((RuntimeError, TypeError), match=says):
            model(x)


def test_without_a_fault_nothing_raises() -> None:
    with fake_cuda():
        model = Planted("none").to("cuda", torch.float16)
        made = model(torch.ones(3, 8, device="cuda", dtype=torch.float16))
        assert (made.device.type, made.dtype, tuple(made.shape)) == ("cuda", torch.float16, (3, 8))
        assert made.detach().cpu().float().numpy().shape == (3, 8)
    assert not torch.cuda.is_initialized()


def test_convolutions_and_attention_take_one_dtype() -> None:
    with fake_cuda():
        conv = nn.Conv2d(3, 4, 3, device="cuda", dtype=torch.bfloat16)
        with pytest.raises(RuntimeError, match=r"should be the same"):
            conv(torch.ones(1, 3, 8, 8, device="cuda"))
        query = torch.ones(1, 2, 5, 8, device="cuda", dtype=torch.bfloat16)
        with pytest.raises(RuntimeError, match=r"bfloat16 and torch\.float32"):
            nn.functional.scaled_dot_product_attention(query, query.float(), query)
        with pytest.raises(RuntimeError, match="attn_mask of bool"):
            nn.functional.scaled_dot_product_attention(
                query, query, query, attn_mask=torch.zeros(5, 5, device="cuda")
            )


@pytest.mark.parametrize("masked", [False, True])
def test_attention_holds_no_scores_and_has_gradients(masked: bool) -> None:
    """1 x 2 heads x 512 x 8 in two bytes is 16,384 a tensor; scores would be a megabyte."""
    with fake_cuda(counted="cpu") as device:
        query = torch.ones(1, 2, 512, 8, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.ones(1, 1, 1, 512, dtype=torch.bool) if masked else None
        nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask).sum().backward()
        assert query.grad is not None
        assert query.grad.shape == query.shape
        assert 3 * 16_384 < device.peak < 10 * 16_384


def test_a_backward_pass_that_computes_blocks_again_finds_the_same_attention() -> None:
    with fake_cuda(counted="cpu"):
        layer = nn.Linear(8, 8)

        def block(x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(layer(x), x, x)

        x = torch.ones(1, 2, 64, 8, requires_grad=True)
        checkpoint(block, x, use_reentrant=False).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.shape == (8, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_upsampling_holds_what_it_makes_and_no_more(dtype: torch.dtype) -> None:
    with torch.inference_mode(), fake_cuda() as device:
        picture = torch.empty(1, 8, 64, 64, device="cuda", dtype=dtype)
        made = nn.functional.interpolate(picture, scale_factor=2.0, mode="nearest")
        assert device.peak == picture.nbytes + made.nbytes == 5 * picture.nbytes


def test_bytes_are_those_alive_on_the_device() -> None:
    with fake_cuda() as device:
        kept = torch.empty(100, device="cuda", dtype=torch.float16)
        for _ in range(3):
            torch.empty(1000, device="cuda", dtype=torch.uint8)
        torch.empty(10**6)
        assert (device.now, device.peak) == (200, 1200)
        assert kept[50:].numel() == 50
        assert device.now == 200, "a view is no copy"


def test_a_module_moves_with_its_buffers_and_shared_parameters() -> None:
    with fake_cuda() as device:
        model = nn.ModuleDict({"one": nn.Linear(10, 10, bias=False), "two": nn.Linear(10, 10, bias=False)})
        model["two"].weight = model["one"].weight
        model.register_buffer("places", torch.ones(10))
        model.to("cuda", torch.bfloat16)
        assert {value.device.type for value in (*model.parameters(), *model.buffers())} == {"cuda"}
        assert model["one"].weight is model["two"].weight
        assert device.now == 2 * 100 + 2 * 10


def test_what_depends_on_numbers_is_guessed() -> None:
    with fake_cuda():
        numbers = torch.rand(3, 4, device="cuda")
        assert numbers.sum().item() == 1.0
        assert not (numbers > 0).all()
        assert numbers.nonzero().shape == (12, 2)
        assert numbers[numbers > 0].shape == (12,)
        assert float(torch.tensor(2.5)) == 2.5, "what is known is known"
    with fake_cuda(answer=True):
        assert (torch.rand(3, device="cuda") > 2).any()


def test_files_give_shapes_and_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(3, 4, dtype=torch.bfloat16), "b": torch.ones(2, dtype=torch.int64)}, path)
    with fake_cuda():
        found = load_file(path)
        assert {name: (value.dtype, tuple(value.shape)) for name, value in found.items()} == {
            "a": (torch.bfloat16, (3, 4)),
            "b": (torch.int64, (2,)),
        }
    assert load_file(path)["a"].float().sum() == 12.0
    torch.save({"a": torch.ones(5)}, tmp_path / "w.pt")
    with fake_cuda():
        loaded = torch.load(tmp_path / "w.pt", map_location="cpu", weights_only=True)["a"]
        assert loaded.to("cuda").device.type == "cuda"


def test_an_array_of_bfloat16_there_is_not() -> None:
    with fake_cuda():
        with pytest.raises(TypeError, match="BFloat16"):
            torch.ones(3, device="cuda", dtype=torch.bfloat16).cpu().numpy()
        assert np.asarray(torch.ones(3, device="cuda").cpu()).dtype == np.float32


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_projection_takes_one_dtype(mode: Any, bias: bool) -> None:
    """Inference mode hands a layer without bias over in one piece, before it is a product."""
    with fake_cuda(), mode():
        layer = nn.Linear(8, 8, bias=bias).to("cuda").half()
        with pytest.raises(RuntimeError, match=r"float16 and torch\.float32; one dtype is due"):
            layer(torch.zeros(2, 8, device="cuda"))
