"""What one model takes of a GPU: memory by batch, seconds an item. Pure arithmetic over its parts.

    memory = weights of all parts + largest activations of any part x batch x WORKSPACE + CONTEXT_GB
    seconds = sum over parts of FLOPs an item / what the GPU reaches of its peak in that part's precision

All parts stay on the GPU, as the adapters keep them, and run one after another, so the largest activations count and
not their sum. The number of pictures at once changes memory and is assumed not to change a picture's seconds: a single
picture of 1024 x 1024 under guidance keeps an A100 as busy as `GpuType.reached` says.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankray.models.hardware import CONTEXT_GB, WORKSPACE, GpuType


@dataclass(frozen=True)
class Part:
    """One part of a model as a job runs it.

    Attributes:
        name: such as "unet".
        weight_bytes: in the precision it is kept in.
        flops: for one item, over all calls and both sides of guidance.
        activation_bytes: alive at once for one item, both sides of guidance.
        rate: "half", "tf32" or "float32", of `GpuType.flops_per_s`.
        together: the whole batch at once, or an item at a time.
    """

    name: str
    weight_bytes: float
    flops: float
    activation_bytes: float
    rate: str
    together: bool = True


@dataclass(frozen=True)
class Footprint:
    """A model's parts; `complete` is False where only its weights are known."""

    parts: tuple[Part, ...]
    bfloat16: bool = False
    complete: bool = True

    @property
    def weights_gb(self) -> float:
        """1e9 bytes."""
        return sum(part.weight_bytes for part in self.parts) / 1e9

    @property
    def flops(self) -> float:
        """For one item."""
        return sum(part.flops for part in self.parts)

    def memory_gb(self, batch: int) -> float:
        """What an actor needs of a GPU with `batch` items at once, 1e9 bytes."""
        return self.weights_gb + WORKSPACE * self._activations_gb(batch) + CONTEXT_GB

    def allocated_gb(self, batch: int) -> float:
        """The tensors of it alone: what `benchmarks/memory_plan` counts one by one."""
        return self.weights_gb + self._activations_gb(batch)

    def _activations_gb(self, batch: int) -> float:
        each = (part.activation_bytes * (batch if part.together else 1) for part in self.parts)
        return max(each, default=0.0) / 1e9

    def largest_batch(self, room_gb: float, most: int) -> int:
        """The first of most, most/2, ... 1 that fits into `room_gb`; 0 where none does."""
        while most:
            if self.memory_gb(most) <= room_gb:
                return most
            most //= 2
        return 0

    def seconds(self, gpu: GpuType) -> float:
        """Of a whole GPU, for one item."""
        return sum(part.flops / gpu.flops_per_s(part.rate) for part in self.parts)
