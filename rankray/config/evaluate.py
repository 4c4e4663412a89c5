"""The configuration of an evaluation: which models, by which benchmarks and metrics, on which prompts.

What makes two models comparable (prompts, seeds, judges) forms an evaluation's identity, and its models do not: more
of them may be measured into the same output later, and what is there is not drawn again. Each model's pictures of one
prompt list are a set, a dataset like Syn-Pic's; every model draws under one label, so that all have the same seeds.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pydantic import Field, model_validator

from rankray.config import (
    MAX_CANDIDATES,
    DrawingJob,
    EvalChoice,
    GeneratorChoice,
    ModelChoice,
    PromptsConfig,
    RewardChoice,
    SynPicConfig,
    flatten,
    nearest,
)

LABEL = "model"
"""What every evaluated model is called within its sets: a seed is a hash of that name too."""

PLAIN_SAMPLES = 1
"""Pictures a prompt of a list that is no benchmark's."""

_FOLDER = re.compile(r"[\w.-]+")


class EvaluatedModel(GeneratorChoice):
    """One model: a row of the generators' table, with a `source` of its own if need be, or what a run has made."""

    model: str = Field(
        description="a row of the generators' table, a finished run of rankdpo, or one of its checkpoints"
    )

    @model_validator(mode="after")
    def _no_samples(self) -> EvaluatedModel:
        if self.samples != 1:
            raise ValueError(
                f"model '{self.label}': pictures a prompt are the prompt list's; give prompts.NAME.samples"
            )
        if self.seed_name is not None:
            raise ValueError(
                f"model '{self.label}': all models draw from the same seeds; leave out seed_name"
            )
        return self


class MetricChoice(RewardChoice):
    """One reward as a metric."""

    on: tuple[str, ...] | None = Field(
        None, min_length=1, description="prompt lists that it scores; all of them unless given"
    )

    @model_validator(mode="after")
    def _of_all(self) -> MetricChoice:
        if self.least is not None:
            raise ValueError(
                f"metric '{self.label}': `least` is a dataset's; a metric is the mean of all pictures"
            )
        return self


class PromptListConfig(PromptsConfig):
    """One prompt list: a benchmark's, under the benchmark's name, or any other for metrics."""

    limit: int | None = Field(
        None, ge=1, description="use so many: the first of a list, evenly spread ones of a benchmark"
    )
    samples: int | None = Field(
        None, ge=1, le=MAX_CANDIDATES, description="pictures a prompt; the benchmark's, or 1"
    )


class SetConfig(SynPicConfig):
    """One model's pictures of one prompt list, judged and scored: Syn-Pic with one generator."""

    FEWEST: ClassVar[int] = 1

    rewards: tuple[RewardChoice, ...] = ()
    judges: tuple[EvalChoice, ...] = ()
    asked: dict[str, str] = Field({}, description="digest of what each benchmark asks of the prompts")

    @property
    def scorers(self) -> tuple[ModelChoice, ...]:
        return (*self.judges, *self.rewards)

    def identity(self) -> dict[str, Any]:
        content = self.model_dump(mode="json", include={"judges"})
        for choice in content["judges"]:
            del choice["pool"], choice["batch_size"]
        own = {key: value for key, value in super().identity().items() if not key.startswith("judges.")}
        return {**own, **dict(flatten(content))}


class EvaluateConfig(DrawingJob):
    """Evaluation: models -> pictures of benchmarks' prompts from the same seeds -> judgements -> tables."""

    models: tuple[EvaluatedModel, ...] = Field(
        (), description="the models; --model WHAT, once for each, takes the place of the file's"
    )
    baseline: str | None = Field(
        None, min_length=1, description="the model that others are compared with: its name, or as --model"
    )
    follow: str | None = Field(
        None, min_length=1, description="a run of rankdpo: measure its checkpoints as they come"
    )
    follow_interval_s: float = Field(30.0, gt=0, description="how often to look for a new checkpoint")
    follow_patience_s: float = Field(
        6 * 3600.0,
        gt=0,
        description="when to stop although the run is not finished: so long after the last one",
    )
    evals: tuple[EvalChoice, ...] = Field(
        (), description="benchmarks; as an option names, metrics' too: geneval,dpg,vqascore"
    )
    metrics: tuple[MetricChoice, ...] = Field((), description="rewards as metrics")
    prompts: dict[str, PromptListConfig] = Field(
        {}, description="by name; --prompts.NAME PATH gives a benchmark of that name its file"
    )
    seed: int = Field(1, ge=0, lt=2**63, description="of all pictures, the same for every model")
    changed: int = Field(
        4, ge=0, le=50, description="pictures kept that changed most, up and down, by each judge"
    )

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateConfig:
        if not self.models and self.follow is None and self.baseline is None:
            raise ValueError("no model: give --model ROW, ROW@DIRECTORY, RUN or CHECKPOINT")
        judged = [choice.label for choice in (*self.evals, *self.metrics)]
        if not judged:
            raise ValueError("nothing to measure by: give --evals, such as geneval,dpg,vqascore")
        for what, names in (("evals and metrics", judged), ("models", [m.label for m in self.models])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: '{twice[0]}' stands twice; give one of them another `name`")
        if LABEL in judged:
            raise ValueError(f"'{LABEL}' is what pictures are filed under; give that metric another `name`")
        for name in self.prompts:
            if not _FOLDER.fullmatch(name):
                raise ValueError(f"prompts.{name}: a list is named by letters, digits and . _ -")
        self._check_lists()
        return self

    def _check_lists(self) -> None:
        for choice in self.evals:
            if choice.label not in self.prompts:
                raise ValueError(
                    f"benchmark '{choice.label}' has no prompts: give --prompts.{choice.label} PATH, "
                    "what its authors publish"
                )
        for metric in self.metrics:
            if not self.prompts:
                raise ValueError(f"metric '{metric.label}' has no prompts: give --prompts.NAME PATH")
            for name in metric.on or ():
                if name not in self.prompts:
                    raise ValueError(
                        f"metric '{metric.label}' is on '{name}'{nearest(name, self.prompts)}, which is no prompt "
                        f"list; there are: {', '.join(self.prompts)}"
                    )
        benchmarks = [choice.label for choice in self.evals]
        asked = {*benchmarks, *(name for metric in self.metrics for name in metric.on or self.prompts)}
        for name in self.prompts:
            if name not in asked:
                raise ValueError(
                    f"prompts.{name}: nothing judges this list{nearest(name, benchmarks)}; benchmarks: "
                    f"{', '.join(benchmarks) or 'none'}; let a metric score it: metrics.on = ['{name}']"
                )

    def identity(self) -> dict[str, Any]:
        """The fields that make models comparable, flat, by dotted name."""
        content = self.model_dump(mode="json", include={"evals", "metrics", "prompts", "seed", "images"})
        for choice in (*content["evals"], *content["metrics"]):
            del choice["pool"], choice["batch_size"]
        return dict(flatten(content))

    def set_config(
        self,
        output: str,
        name: str,
        generator: GeneratorChoice,
        samples: int,
        scorers: tuple[ModelChoice, ...],
        asked: dict[str, str],
    ) -> SetConfig:
        """The set of one model and the prompt list `name`."""
        generator = GeneratorChoice(
            **generator.model_dump(exclude={"name", "samples"}), name=LABEL, samples=samples
        )
        prompts = PromptsConfig(**self.prompts[name].model_dump(exclude={"samples"}))
        metrics = [
            choice.model_dump(exclude={"on"}) for choice in scorers if isinstance(choice, RewardChoice)
        ]
        judges = tuple(choice for choice in scorers if isinstance(choice, EvalChoice))
        rewards = tuple(RewardChoice(**metric) for metric in metrics)
        more: dict[str, Any] = {"judges": judges, "rewards": rewards, "asked": asked}
        return self.drawing(SetConfig, output, self.seed, prompts, [generator], **more)
