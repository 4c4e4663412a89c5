"""Pictures by a model that is being trained, and the pipeline that it becomes in the end.

Both build the tuned denoiser from the starting weights and what was trained, and never touch the one in training. While
a grid is drawn, each worker holds a whole pipeline beside its training: 7 GB for SDXL in half precision.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import torch
from accelerate.utils.memory import release_memory
from PIL import Image
from torch import Tensor, distributed

from rankray import schema, store
from rankray.cluster.item_safe import BrokenModelError, ItemSafe, describe
from rankray.config.rankdpo import RankDPOConfig
from rankray.models.denoisers import parts
from rankray.models.generators import GeneratorSpec
from rankray.models.generators.diffusers_pipeline import DiffusersGenerator, fill_fused
from rankray.rankdpo import zero
from rankray.rankdpo.step import Training, tuned_denoiser
from rankray.rankdpo.train_job import TrainJob

COLUMNS = 4
GRID_SEED = 0


def denoiser_with(spec: GeneratorSpec, config: RankDPOConfig, weights: Mapping[str, Tensor] | None) -> Any:
    """The denoiser with trained weights in place (None: as it starts), adapters not merged: in float32 on the CPU,
    where nothing is rounded."""
    denoiser = tuned_denoiser(spec, config)
    own = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    weights = own if weights is None else weights
    if own.keys() != weights.keys():
        strange = sorted(own.keys() ^ weights.keys())
        raise ValueError(f"trained weights do not fit the model: {len(strange)} names, such as {strange[0]}")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    return denoiser.eval().requires_grad_(False)


def place_weights(
    pipe: Any, spec: GeneratorSpec, config: RankDPOConfig, weights: Iterable[tuple[str, Tensor]]
) -> None:
    """Gives a pipeline that draws the trained weights, in the row's dtype: one by one into its denoiser's place, or as
    a denoiser with adapters merged. Projections that the row fuses are of them too."""
    name, dtype = parts.row_of(spec).denoiser, getattr(torch, spec.dtype)
    if config.tuned.train == "lora":
        denoiser = denoiser_with(spec, config, {key: value.cpu() for key, value in weights})
        parts.merge_lora(denoiser)
        setattr(pipe, name, parts.cast(denoiser, str(pipe.device), dtype))
        return
    own = dict(getattr(pipe, name).named_parameters())
    with torch.no_grad():
        for key, value in weights:
            own[key].copy_(value)
    fill_fused(getattr(pipe, name))


def painter(job: TrainJob, weights: Iterable[tuple[str, Tensor]]) -> DiffusersGenerator:
    """The model with trained weights, ready to draw."""
    found = DiffusersGenerator(job.spec, job.device)
    place_weights(found.pipe, job.spec, job.config, weights)
    return found


def keep_grid(training: Training, step: int) -> None:
    """Every `sample_every` steps: a grid of pictures by the model as it is, OUTPUT/samples/step-N.png.

    Each worker draws its share of them, and all wait for the slowest.
    """
    job = training.job
    every, prompts = job.config.checkpoints.sample_every, job.sample_prompts
    if not every or step % every:
        return
    with training.averaged():
        drawing = painter(job, zero.each(training.engine))
    # What is drawn beside them would be thrown away, and a full batch's pictures need memory that training holds.
    drawing.batch_size = min(drawing.batch_size, -(-len(prompts) * COLUMNS // training.world))
    grid = draw_grid(job.spec, drawing, prompts, training.rank, training.world).to(drawing.pipe.device)
    distributed.all_reduce(grid)
    if training.rank == 0:
        buffer = io.BytesIO()
        Image.fromarray(grid.cpu().numpy()).save(buffer, format="PNG")
        fs, output = store.filesystem(job.output)
        fs.create_dir(f"{output}/samples", recursive=True)
        with fs.open_output_stream(f"{output}/samples/step-{step:06}.png") as stream:
            stream.write(buffer.getvalue())
        about = {"prompts": list(prompts), "columns": COLUMNS}
        store.write_json(f"{output}/samples/prompts.json", about, fs)
    del drawing
    release_memory()


def draw_grid(spec: GeneratorSpec, painter: Any, prompts: Sequence[str], rank: int, world: int) -> Tensor:
    """A worker's share of `COLUMNS` pictures of each prompt, a row a prompt, black where others draw: uint8[H, W, 3].

    Seeds are always the same, and a picture depends on its prompt and seed alone, whichever worker draws it. One that
    fails is black; where there is no memory for a batch it is halved, and where all fail, that is said and the training
    goes on.
    """
    cells = [(row, column) for row in range(len(prompts)) for column in range(COLUMNS)][rank::world]
    items = [
        (prompts[row], schema.candidate_seed(GRID_SEED, schema.prompt_id(prompts[row]), "samples", column))
        for row, column in cells
    ]

    def paint(some: Sequence[tuple[str, int]]) -> list[Image.Image]:
        return list(painter.generate([text for text, _ in some], [seed for _, seed in some]))

    height, width = spec.height, spec.width
    grid = torch.zeros(len(prompts) * height, COLUMNS * width, 3, dtype=torch.uint8)
    try:
        pictures = ItemSafe(painter, "grid of samples").run(paint, items)
    except BrokenModelError as error:
        pictures = [error] * len(items)
    failed = [picture for picture in pictures if isinstance(picture, Exception)]
    if failed and len(failed) == len(items):
        why = f"a worker could draw none of its {len(items)} pictures of the grid: {describe(failed[0])}"
        print(f"[rankray] {why}; checkpoints.sample_every = 0 draws none", flush=True)
    for (row, column), picture in zip(cells, pictures, strict=True):
        if not isinstance(picture, Exception):
            pixels = torch.from_numpy(np.array(picture.convert("RGB")))
            grid[row * height : (row + 1) * height, column * width : (column + 1) * width] = pixels
    return grid


def export_pipeline(
    spec: GeneratorSpec, config: RankDPOConfig, checkpoint: str | None, pipeline: str, lora: str | None = None
) -> None:
    """Writes the tuned pipeline of a checkpoint to `pipeline`, replacing what is there, as `save_pretrained` does; and
    the adapters by themselves into the directory `lora`, where one is given (all are URIs). Without a checkpoint it is
    the model as it started."""
    local = pafs.LocalFileSystem()
    with tempfile.TemporaryDirectory(prefix="rankray-export-") as scratch:
        name, weights = "ema" if config.tuned.ema else "weights", None
        if checkpoint is not None:
            fs, place = store.filesystem(checkpoint)
            for info in fs.get_file_info(pafs.FileSelector(place)):
                if info.base_name.startswith(name):
                    pafs.copy_files(info.path, f"{scratch}/{info.base_name}", fs, local)
            weights = zero.Stored(Path(scratch), name)
        denoiser = denoiser_with(spec, config, weights)
        asked = config.checkpoints.export_dtype
        dtype = getattr(torch, asked) if asked else None
        if lora is not None:
            parts.export_lora(spec, denoiser, Path(scratch, "lora"), dtype)
            fs, place = store.filesystem(lora)
            pafs.copy_files(f"{scratch}/lora", place, local, fs)
        parts.merge_lora(denoiser)
        parts.export(spec, denoiser, Path(scratch, "pipeline"), dtype)
        fs, place = store.filesystem(pipeline)
        if fs.get_file_info(place).type != pafs.FileType.NotFound:
            fs.delete_dir(place)
        fs.create_dir(place, recursive=True)
        pafs.copy_files(f"{scratch}/pipeline", place, local, fs)
