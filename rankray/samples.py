"""Pictures by a model that is being trained, and the pipeline that it becomes in the end.

Both build the tuned denoiser anew from the starting weights and what was trained, and never touch the one in training.
A grid therefore holds a second denoiser for as long as it is drawn: 5 GB for SDXL in half precision.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankray import schema, store

if TYPE_CHECKING:
    from torch import Tensor

    from rankray.generators import GeneratorSpec
    from rankray.training import TrainJob
    from rankray.training_config import RankDPOConfig

COLUMNS = 4
GRID_SEED = 0


def denoiser_with(spec: GeneratorSpec, config: RankDPOConfig, weights: Mapping[str, Tensor]) -> Any:
    """The denoiser with trained weights in place, adapters merged: in float32 on the CPU, where nothing is rounded."""
    import torch

    from rankray.denoisers import parts
    from rankray.training import tuned_denoiser

    denoiser = tuned_denoiser(spec, config)
    own = dict(denoiser.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    if config.tuned.train == "lora":
        parts.merge_lora(denoiser)
    return denoiser.eval().requires_grad_(False)


def place_denoiser(
    pipe: Any, spec: GeneratorSpec, config: RankDPOConfig, weights: Mapping[str, Tensor], device: str
) -> None:
    """Puts the denoiser with trained weights into a pipeline that draws, in the row's dtype."""
    import torch

    from rankray.denoisers import parts

    found = parts.cast(denoiser_with(spec, config, weights), device, getattr(torch, spec.dtype))
    setattr(pipe, parts.row_of(spec).denoiser, found)


def write_grid(job: TrainJob, weights: Mapping[str, Tensor], step: int, prompts: Sequence[str]) -> None:
    """Draws `COLUMNS` pictures of each prompt into OUTPUT/samples/step-N.png, a row a prompt; always the same seeds."""
    from PIL import Image

    from rankray.generators.diffusers_pipeline import DiffusersGenerator

    fs, output = store.filesystem(job.output)
    fs.create_dir(f"{output}/samples", recursive=True)
    generator = DiffusersGenerator(job.spec, job.device)
    place_denoiser(generator.pipe, job.spec, job.config, weights, job.device)
    texts = [text for text in prompts for _ in range(COLUMNS)]
    seeds = [
        schema.candidate_seed(GRID_SEED, schema.prompt_id(text), "samples", n % COLUMNS)
        for n, text in enumerate(texts)
    ]
    pictures = generator.generate(texts, seeds)
    width, height = pictures[0].size
    grid = Image.new("RGB", (COLUMNS * width, len(prompts) * height))
    for n, picture in enumerate(pictures):
        grid.paste(picture, ((n % COLUMNS) * width, (n // COLUMNS) * height))
    buffer = io.BytesIO()
    grid.save(buffer, format="PNG")
    with fs.open_output_stream(f"{output}/samples/step-{step:06}.png") as stream:
        stream.write(buffer.getvalue())
    store.write_json(f"{output}/samples/prompts.json", {"prompts": list(prompts), "columns": COLUMNS}, fs)


def export_pipeline(spec: GeneratorSpec, config: RankDPOConfig, checkpoint: str, place: str) -> None:
    """Writes the tuned pipeline of a checkpoint (an URI) to `place`: OUTPUT/pipeline, as `save_pretrained` does."""
    import torch
    from safetensors.torch import load_file

    from rankray.checkpoints import upload
    from rankray.denoisers import parts

    with tempfile.TemporaryDirectory(prefix="rankray-export-") as scratch:
        local = Path(scratch) / "checkpoint"
        download(checkpoint, local)
        name = "ema" if config.tuned.ema else "weights"
        denoiser = denoiser_with(spec, config, load_file(local / f"{name}.safetensors"))
        asked = config.checkpoints.export_dtype
        parts.export(spec, denoiser, Path(scratch) / "pipeline", getattr(torch, asked) if asked else None)
        fs, path = store.filesystem(place)
        upload(Path(scratch) / "pipeline", fs, path)


def download(uri: str, directory: Path) -> None:
    """Copies a place on an Arrow filesystem to a local directory."""
    import pyarrow.fs as pafs

    fs, path = store.filesystem(uri)
    directory.mkdir(parents=True, exist_ok=True)
    pafs.copy_files(path, str(directory), source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
