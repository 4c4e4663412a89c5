"""Does a training step earn its keep? RankDPO's step against the common recipe, in one process, turn by turn.

python jobs/synpic.py --config jobs/synpic-shapes.toml --prompts.path shapes:train --prompts.limit 1834 \
    --output /data/train
python benchmarks/training.py /data/train [--json FILE]

The common recipe (public Diffusion-DPO training scripts, plainly written here): best against worst, a second frozen
model for the reference, autoencoder and text encoders within the loop. Ours: encoded once, all pairs of the ranking
from k predictions, reference errors computed ahead, or by a copy in the loop with `--reference copy`. Both train the
same model on the same prompts with the same optimizer, batch and threads; what is compared is pairs of pictures learnt
from a second. What is computed ahead costs too, once, and is measured beside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import steady
import torch

from rankray import config, store
from rankray.config.rankdpo import RankDPOConfig
from rankray.rankdpo import job as rankdpo

BATCH = 16


class CommonRecipe:
    """Diffusion-DPO as it is usually written: everything in the loop, two models, one pair a prompt."""

    def __init__(self, plan: rankdpo.Plan) -> None:
        from rankray.models.denoisers import parts
        from rankray.rankdpo import batches

        self.rows = [row for row in plan.sources[0].dataset.rows(images=True) if _pair(row) is not None]
        self.encoders = parts.load_encoders(plan.spec, "cpu", torch.float32)
        self.model = parts.load_denoiser(plan.spec, "cpu", torch.float32).train()
        self.reference = parts.load_denoiser(plan.spec, "cpu", torch.float32).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        self.spec, self.beta = plan.spec, plan.config.objective.beta
        self.noising = batches.noising(plan.spec, plan.config)
        self.module = parts.module_of(plan.spec)
        self.place = 0

    def step(self) -> int:
        """One step over `BATCH` prompts; the pairs that it learnt from."""
        from rankray import diffusion
        from rankray.models.denoisers import parts
        from rankray.rankdpo.encoding import picture

        rows = [self.rows[(self.place + n) % len(self.rows)] for n in range(BATCH)]
        self.place += BATCH
        pairs = [_pair(row) for row in rows]
        pictures = [
            picture(row["candidates"][k]["image"], self.spec.height, self.spec.width)
            for side in (0, 1)
            for row, pair in zip(rows, pairs, strict=True)
            if pair is not None
            for k in (pair[side],)
        ]
        with torch.no_grad():
            mean, std = parts.encode_images(self.encoders, pictures)
            latents = mean + std * torch.randn_like(std)
            prompts = [row["prompt"] for row in rows]
            text = self.module.encode_prompts(self.encoders, prompts, self.spec.call)
            text = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in text.items()}
        process = self.noising.process
        noise = torch.randn_like(latents[: len(rows)]).repeat(2, 1, 1, 1)
        time_ = torch.randint(process.num_times, (len(rows),)).repeat(2)
        noisy = diffusion.noised(process, latents, noise, time_)
        due = diffusion.target(process, latents, noise, time_)
        size = (self.spec.height, self.spec.width)
        with torch.no_grad():
            reference = diffusion.error(self.module.predict(self.reference, noisy, time_, text, size), due)
        error = diffusion.error(self.module.predict(self.model, noisy, time_, text, size), due)
        s = error - reference
        loss = -torch.nn.functional.logsigmoid(-self.beta * (s[: len(rows)] - s[len(rows) :])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return len(rows)


def _pair(row: dict[str, Any]) -> tuple[int, int] | None:
    """Places of the best and the worst candidate, None where they tie."""
    ranked = [(c["rank"], k) for k, c in enumerate(row["candidates"]) if c["rank"] > 0]
    if len(ranked) < 2:
        return None
    best, worst = min(ranked)[1], max(ranked)[1]
    phi = [row["candidates"][k]["win_probability"] for k in (best, worst)]
    return (best, worst) if phi[0] != phi[1] else None


class Ours:
    """The worker's own steps, in this process: DeepSpeed in a group of one, fed by the encoded set."""

    def __init__(self, plan: rankdpo.Plan, scratch: Path) -> None:
        import ray

        from rankray.rankdpo import step, zero
        from rankray.rankdpo.feed import Rows

        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        begin_s = time.perf_counter()
        job, _ = rankdpo._encoded(plan, str(scratch), print)
        self.ahead_s = time.perf_counter() - begin_s
        ray.shutdown()
        os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported
        zero.alone()
        rows = Rows(job)
        self.steps: Iterator[Any] = step.begin(job, rows).steps(rows)
        self.wait_s = 0.0

    def step(self) -> int:
        """One step over `BATCH` prompts; the pairs that it learnt from."""
        taken = next(self.steps)
        self.wait_s += taken.wait_s
        return int(taken.sums["pairs"])


def rates(side: Any, steps: int) -> tuple[float, float]:
    """(pairs, prompts) a second over some steps."""
    begin_s = time.perf_counter()
    pairs = sum(side.step() for _ in range(steps))
    wall_s = time.perf_counter() - begin_s
    return pairs / wall_s, steps * BATCH / wall_s


def main() -> None:
    """Runs both in turns, prints, and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="what jobs/synpic.py wrote")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of each side in each turn")
    parser.add_argument("--model", default="shapes-sdxl")
    parser.add_argument(
        "--reference",
        choices=("precomputed", "copy"),
        default="precomputed",
        help="copy: in the loop, by a second model",
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = store.read(options.dataset).info["rows"]
    tables = {
        "dataset": options.dataset,
        "output": "/nowhere",
        "model": {"model": options.model},
        "batch_size": BATCH,
        "steps": rows // BATCH,
        "objective": {"beta": 100.0, "reference": options.reference},
        "optimizer": {"learning_rate": 1e-6},
        "validation": {"share": 0.0},
    }
    plan = rankdpo.check(config.build(RankDPOConfig, tables))
    total = min((options.turns + 1) * options.steps, rows // BATCH)
    options.steps = total // (options.turns + 1)
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = Ours(plan, Path(scratch)), CommonRecipe(plan)
        for side in (ours, theirs):
            rates(side, options.steps)  # warm
        ours.wait_s, begin = 0.0, []
        for _ in range(options.turns):
            begin.append((rates(ours, options.steps), rates(theirs, options.steps)))
    ratios = sorted(a[0] / b[0] for a, b in begin)
    pairs = [statistics.median(side[n][0] for side in begin) for n in (0, 1)]
    prompts = [statistics.median(side[n][1] for side in begin) for n in (0, 1)]
    spent_s = sum(options.steps * BATCH / a[1] for a, _ in begin)
    print("| | pairs/s | prompts/s |\n|---|---|---|")
    for name, p, q in zip(("RankDPO", "common recipe"), pairs, prompts, strict=True):
        print(f"| {name} | {p:.1f} | {q:.1f} |")
    ratio, wait = statistics.median(ratios), ours.wait_s / spent_s
    print(
        f"\npairs a second: {ratio:.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f}); waiting for data {wait:.2%}"
    )
    ahead = "encoding and one epoch of reference errors" if options.reference == "precomputed" else "encoding"
    print(f"{ahead}, once: {ours.ahead_s:.0f} s for {rows} prompts")
    if options.json is not None:
        result = {"ratio": ratio, "ratios": ratios, "pairs_per_s": pairs, "prompts_per_s": prompts}
        result |= {"data_wait_share": wait, "ahead_s": ours.ahead_s, "rows": rows}
        result |= {"reference": options.reference}
        options.json.write_text(json.dumps({**result, **steady.provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
