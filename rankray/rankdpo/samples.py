"""Pictures by a model that is being trained, and the pipeline that it becomes in the end.

Both build the tuned denoiser from the starting weights and what was trained, and never touch the one in training. While
a grid is drawn, each worker holds a whole pipeline beside its training: 7 GB for SDXL in half precision.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rankray import schema, store
from rankray.cluster.item_safe import each_alone

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from rankray.config.rankdpo import RankDPOConfig
    from rankray.models.generators import GeneratorSpec
    from rankray.models.generators.diffusers_pipeline import DiffusersGenerator
    from rankray.rankdpo.training import TrainJob

COLUMNS = 4
GRID_SEED = 0


def denoiser_with(spec: GeneratorSpec, config: RankDPOConfig, weights: Mapping[str, Tensor]) -> Any:
    """The denoiser with trained weights in place, adapters merged: in float32 on the CPU, where nothing is rounded."""
    import torch

    from rankray.models.denoisers import parts
    from rankray.rankdpo.training import tuned_denoiser

    denoiser = tuned_denoiser(spec, config)
    own = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    if own.keys() != weights.keys():
        strange = sorted(own.keys() ^ weights.keys())
        raise ValueError(f"trained weights do not fit the model: {len(strange)} names, such as {strange[0]}")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    if config.tuned.train == "lora":
        parts.merge_lora(denoiser)
    return denoiser.eval().requires_grad_(False)


def place_weights(
    pipe: Any, spec: GeneratorSpec, config: RankDPOConfig, weights: Iterable[tuple[str, Tensor]]
) -> None:
    """Gives a pipeline that draws the trained weights, in the row's dtype: one by one into its denoiser's place, or as
    a denoiser with adapters merged."""
    import torch

    from rankray.models.denoisers import parts

    name, dtype = parts.row_of(spec).denoiser, getattr(torch, spec.dtype)
    if config.tuned.train == "lora":
        found = {key: value.cpu() for key, value in weights}
        setattr(pipe, name, parts.cast(denoiser_with(spec, config, found), str(pipe.device), dtype))
        return
    own = dict(getattr(pipe, name).named_parameters())
    with torch.no_grad():
        for key, value in weights:
            own[key].copy_(value)


def painter(job: TrainJob, weights: Iterable[tuple[str, Tensor]]) -> DiffusersGenerator:
    """The model with trained weights, ready to draw."""
    from rankray.models.generators.diffusers_pipeline import DiffusersGenerator

    found = DiffusersGenerator(job.spec, job.device)
    place_weights(found.pipe, job.spec, job.config, weights)
    return found


def write_grid(job: TrainJob, painter: Any, step: int, prompts: Sequence[str], rank: int, world: int) -> None:
    """Draws the grid of `draw_grid`, each worker its share, into OUTPUT/samples/step-N.png."""
    from torch import distributed

    grid = draw_grid(job.spec, painter, prompts, rank, world).to(painter.pipe.device)
    distributed.all_reduce(grid)
    if rank == 0:
        _keep_grid(job, grid.cpu().numpy(), step, prompts)


def draw_grid(spec: GeneratorSpec, painter: Any, prompts: Sequence[str], rank: int, world: int) -> Tensor:
    """A worker's share of `COLUMNS` pictures of each prompt, a row a prompt, black where others draw: uint8[H, W, 3].

    Seeds are always the same, and a picture depends on its prompt and seed alone, whichever worker draws it. One that
    fails is black.
    """
    import torch

    places = [(row, column) for row in range(len(prompts)) for column in range(COLUMNS)][rank::world]
    items = [
        (prompts[row], schema.candidate_seed(GRID_SEED, schema.prompt_id(prompts[row]), "samples", column))
        for row, column in places
    ]

    def paint(some: Sequence[tuple[str, int]]) -> list[Image.Image]:
        return list(painter.generate([text for text, _ in some], [seed for _, seed in some]))

    height, width = spec.height, spec.width
    grid = torch.zeros(len(prompts) * height, COLUMNS * width, 3, dtype=torch.uint8)
    for (row, column), picture in zip(places, each_alone(paint, items), strict=True):
        if not isinstance(picture, Exception):
            pixels = torch.from_numpy(np.array(picture.convert("RGB")))
            grid[row * height : (row + 1) * height, column * width : (column + 1) * width] = pixels
    return grid


def _keep_grid(job: TrainJob, grid: npt.NDArray[np.uint8], step: int, prompts: Sequence[str]) -> None:
    from PIL import Image

    fs, output = store.filesystem(job.output)
    fs.create_dir(f"{output}/samples", recursive=True)
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG")
    with fs.open_output_stream(f"{output}/samples/step-{step:06}.png") as stream:
        stream.write(buffer.getvalue())
    store.write_json(f"{output}/samples/prompts.json", {"prompts": list(prompts), "columns": COLUMNS}, fs)


def export_pipeline(spec: GeneratorSpec, config: RankDPOConfig, checkpoint: str, place: str) -> None:
    """Writes the tuned pipeline of a checkpoint (an URI) to `place`: OUTPUT/pipeline, as `save_pretrained` does."""
    import torch

    from rankray.models.denoisers import parts
    from rankray.rankdpo.checkpoints import Stored, upload

    with tempfile.TemporaryDirectory(prefix="rankray-export-") as scratch:
        local, name = Path(scratch) / "checkpoint", "ema" if config.tuned.ema else "weights"
        download(checkpoint, local, name)
        denoiser = denoiser_with(spec, config, Stored(local, name))
        asked = config.checkpoints.export_dtype
        parts.export(spec, denoiser, Path(scratch) / "pipeline", getattr(torch, asked) if asked else None)
        fs, path = store.filesystem(place)
        upload(Path(scratch) / "pipeline", fs, path)


def download(uri: str, directory: Path, start: str) -> None:
    """Copies those files of a place on an Arrow filesystem whose names start so to a local directory."""
    import pyarrow.fs as pafs

    fs, path = store.filesystem(uri)
    directory.mkdir(parents=True, exist_ok=True)
    for info in fs.get_file_info(pafs.FileSelector(path)):
        if info.base_name.startswith(start):
            pafs.copy_files(info.path, str(directory / info.base_name), fs, pafs.LocalFileSystem())
