"""A configuration's models as stages, each with the pool of actors that runs it; the driver imports none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rankray.cluster.actors import Actors, Stage
from rankray.config import ModelChoice, SynPicConfig, device_of
from rankray.models import environments, generators, rewards
from rankray.models.targets import Target


def stages_of(
    config: SynPicConfig, judges: Mapping[str, Target] | None = None, look_up: bool = True
) -> list[Stage]:
    """Every model as a stage, generators first, in the configuration's order; `look_up` as in `generators.resolve`."""
    stages_: list[Stage] = []
    for generator in config.generators:
        target = generators.resolve(generator, look_up)
        stages_.append(Stage("generator", target, _actors(generator, target, config), generator.samples))
    scorers = {
        **(judges or {}),
        **{reward.label: rewards.resolve(reward, look_up) for reward in config.rewards},
    }
    for scorer in config.scorers:
        target = scorers[scorer.label]
        stages_.append(Stage("reward", target, _actors(scorer, target, config)))
    return stages_


def overlays_of(config: SynPicConfig, models: Sequence[Stage], plan: Sequence[Stage]) -> list[str]:
    """The overlay environments that the stages of `plan` need."""
    needed = {stage.target.name for stage in plan}
    choices = zip((*config.generators, *config.scorers), models, strict=True)
    names = {_environment(choice, stage.target) for choice, stage in choices if choice.label in needed}
    return sorted(name for name in names if name is not None)


def _actors(choice: ModelChoice, target: Target, config: SynPicConfig) -> Actors:
    """The pool: the configuration's numbers, or the table's where it is silent. CPU jobs ask for no GPU."""
    pool, forced = choice.pool, config.execution.device
    num_gpus = target.num_gpus if pool.num_gpus is None else pool.num_gpus
    if forced == "cpu":
        num_gpus = 0.0
    return Actors(
        min_size=pool.min_size,
        max_size=pool.max_size or pool.min_size,
        num_cpus=target.num_cpus if pool.num_cpus is None else pool.num_cpus,
        num_gpus=num_gpus,
        memory_bytes=None if pool.memory_gb is None else int(pool.memory_gb * 1024**3),
        resources=pool.resources,
        runtime_env={**_interpreter(choice, target), **pool.runtime_env},
        device=device_of(num_gpus or forced == "cuda", config.rehearse),
    )


def _environment(choice: ModelChoice, target: Target) -> str | None:
    """The overlay that a model's actors run in, None for the job's own environment or one that the user names."""
    name = choice.pool.environment or target.environment
    return None if name in (None, "main") or "py_executable" in choice.pool.runtime_env else name


def _interpreter(choice: ModelChoice, target: Target) -> dict[str, str]:
    name = _environment(choice, target)
    if name is None:
        return {}
    spec = environments.spec_of(name)
    return {"py_executable": str(environments.place_of(name, spec) / "bin" / "python")}
