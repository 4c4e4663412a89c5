"""The configuration of an ablation (paper Tables 4 and 5): rows that differ in one thing, trained at equal cost.

Every objective is tuned alike: by the same number of trainings, measured on validation prompts, and the best setting is
what all its rows train with. What an ablation compares is written out row by row, so that a table can be read off its
file; that costs some 6 lines of TOML a row.
"""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field, field_serializer, model_validator

from rankray.config import (
    DRAWN_BY,
    MAX_CANDIDATES,
    SCORED_BY,
    DrawingJob,
    GeneratorChoice,
    PromptsConfig,
    RewardChoice,
    Strict,
    SynPicConfig,
    flatten,
    require_built,
)
from rankray.config.rankdpo import (
    LabelsConfig,
    ObjectiveConfig,
    RankDPOConfig,
    TrainingSettings,
    ValidationConfig,
)

CHECKER = "checker"
"""The metric that knows the truth, on prompts of the shapes world."""

SEED_NAME = "model"
"""All models of an evaluation draw from this label's seeds."""


class MeasuredConfig(SynPicConfig):
    """Pictures that models are measured by; where all trainings diverged, the start's alone."""

    FEWEST: ClassVar[int] = 1


class DrawnConfig(Strict):
    """What models are measured on: prompts, pictures a prompt, and the seed that all models share."""

    prompts: PromptsConfig
    samples: int = Field(1, ge=1, le=MAX_CANDIDATES // 2, description="pictures a prompt")
    seed: int = Field(1, ge=0, lt=2**62, description="of their pictures, the same for every model")


class TuningConfig(Strict):
    """How each objective's setting is found: by successive halving on a grid that is extended (`ablate.tuning`)."""

    trainings: int = Field(
        24, ge=1, description="of each objective: its grid, further seeds, and whatever extends the grid"
    )
    most: int | None = Field(
        None,
        ge=1,
        description="of each at most: all get more while the best of one lies at the edge of what was tried; trainings "
        "if not given",
    )
    seeds: int = Field(2, ge=1, description="that a setting is trained from before it is taken")
    every: int | None = Field(
        None,
        ge=1,
        description="steps between measurements, the best of which is taken; only the last if not given",
    )


class TunedObjective(Strict):
    """An objective and the grid that is searched for it, each axis rising; one value is given, and not searched."""

    name: str = Field(min_length=1, description="by which rows name it")
    objective: ObjectiveConfig
    learning_rates: tuple[float, ...] = Field(min_length=1, description="that are tried, rising")
    betas: tuple[float, ...] = Field(
        (), description="that are tried with each of them, rising; the objective's own if empty"
    )

    @model_validator(mode="after")
    def _rising(self) -> TunedObjective:
        for name, axis in (("learning_rates", self.learning_rates), ("betas", self.betas)):
            if any(low >= high for low, high in pairwise(axis)) or any(value <= 0 for value in axis):
                raise ValueError(
                    f"'{self.name}': {name} are {list(axis)}; every one is tried with every beta, and beyond both ends "
                    "by their factor, so give them rising, above 0, each once"
                )
        return self

    @property
    def axes(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Learning rates and betas of the grid."""
        return self.learning_rates, self.betas or (self.objective.beta,)

    @property
    def first(self) -> tuple[float, float]:
        """The grid's first (learning rate, beta)."""
        rates, betas = self.axes
        return rates[0], betas[0]


class Row(Strict):
    """One row of a table, or one point of a curve: an objective at its best setting, and whom it learns from."""

    name: str = Field(min_length=1, description="by which curves and files name it")
    label: str = Field(min_length=1, description="what tables call it")
    objective: str = Field(description="the name of one of [[objectives]]")
    labels: LabelsConfig | None = Field(None, description="in place of the ablation's own, key by key")
    tables: tuple[str, ...] = Field((), description="where it stands, such as '4'")
    paper: dict[str, str] = Field({}, description="the row of the paper that it answers to, by table")
    seeds: int | None = Field(None, ge=1, description="in place of the ablation's number")
    reencode: bool = Field(
        False, description="learn from pictures as the model's autoencoder gives them back"
    )

    @field_serializer("labels")
    def _as_given(self, labels: LabelsConfig | None) -> dict[str, Any] | None:
        """The keys that take the place of the ablation's own, and no others: a default that is said is one of them."""
        return None if labels is None else labels.model_dump(mode="json", exclude_unset=True)


class Point(Strict):
    """Where a row stands on a curve."""

    x: float = Field(description="how much of the quantity the row has")
    row: str = Field(description="the row's name")


class Curve(Strict):
    """Rows along a quantity: candidates, rewards, prompts."""

    name: str = Field(description="by which files name it")
    title: str = Field(description="of its chart")
    x_label: str = Field(description="what the quantity is called")
    points: tuple[Point, ...] = Field(min_length=2, description="rows, and where each stands")


class Along(Strict):
    """One long run of a row, measured as it goes: does the truth still rise when the reward does?"""

    row: str = Field(description="the row's name")
    steps: int = Field(ge=2, description="of the run")
    every: int = Field(ge=1, description="steps between measurements")


class AblationConfig(DrawingJob):
    """Ablations (paper Tables 4 and 5): one ranked dataset, one model, rows trained at equal steps, held-out truth."""

    model: GeneratorChoice = Field(description="the model that every row starts from")
    prompts: PromptsConfig
    generators: tuple[GeneratorChoice, ...] = DRAWN_BY
    rewards: tuple[RewardChoice, ...] = SCORED_BY
    seed: int = Field(
        0, ge=0, lt=2**62, description="of the dataset; rows are trained from seeds 0, 1, 2, ..."
    )
    metric: str = Field(CHECKER, description="what is compared: the shapes world's checker, or a reward")
    seeds: int = Field(3, ge=1, description="trainings of each row")
    sweep_seed: int = Field(
        1000, ge=0, description="first seed of the trainings that choose settings; no row's own"
    )
    trials: Literal["jobs", "actors"] = Field(
        "jobs",
        description="each training a RankDPO job, or small ones one after another in actors, which start faster",
    )
    parallel: int | None = Field(
        None, ge=1, description="trainings at once; as many as the cluster has room for"
    )
    labels: LabelsConfig = LabelsConfig()
    training: TrainingSettings = TrainingSettings()
    validation: DrawnConfig
    held_out: DrawnConfig
    tuning: TuningConfig = TuningConfig()
    objectives: tuple[TunedObjective, ...] = Field(
        min_length=1, description="what rows are trained by, each with its grid"
    )
    rows: tuple[Row, ...] = Field(
        min_length=1, description="of the tables and curves, a training each a seed"
    )
    curves: tuple[Curve, ...] = Field((), description="rows along a quantity")
    along: Along | None = Field(None, description="one long run of a row, measured as it goes")

    @model_validator(mode="after")
    def _consistent(self) -> AblationConfig:
        self._check_training()
        sizes = self._check_tuning()
        for row in self.rows:
            if row.objective not in sizes:
                raise ValueError(
                    f"row '{row.name}': no objective '{row.objective}'; there are {', '.join(sizes)}"
                )
        named = [point.row for curve in self.curves for point in curve.points]
        named += [self.along.row] if self.along else []
        missing = sorted(set(named) - {row.name for row in self.rows})
        if missing:
            raise ValueError(f"curves name rows that are not there: {', '.join(missing)}")
        if self.sweep_seed < max(row.seeds or self.seeds for row in self.rows):
            raise ValueError(
                f"sweep_seed = {self.sweep_seed} is the seed of a row's own training; take one above the rows' seeds"
            )
        self._check_rows()
        if self.along and self.along.steps % self.along.every:
            raise ValueError(
                f"along.every = {self.along.every} does not divide along.steps = {self.along.steps}; the last step is "
                "measured too"
            )
        if self.along and self.along.steps // self.along.every > MAX_CANDIDATES - 1:
            raise ValueError(
                f"along.every = {self.along.every} makes {self.along.steps // self.along.every} checkpoints; "
                f"{MAX_CANDIDATES - 1} at most are measured together"
            )
        return self

    def _check_rows(self) -> None:
        """What a row's objective and labels are together is checked as a training's, and who draws as a dataset's."""
        for row in self.rows:
            first = self.tuned(row.objective).first
            require_built(f"row '{row.name}': ", functools.partial(self.trial_of, row, first, 0))
        require_built("", lambda: self.synpic("-"))
        require_built("", lambda: self.evaluation("-", self.held_out, {"start": None}))

    def _check_tuning(self) -> dict[str, int]:
        """The size of each objective's grid."""
        sizes = {tuned.name: math.prod(map(len, tuned.axes)) for tuned in self.objectives}
        if len(sizes) < len(self.objectives) or len({row.name for row in self.rows}) < len(self.rows):
            raise ValueError("objectives and rows: each name stands once")
        if len({size > 1 for size in sizes.values()}) > 1:
            given = ", ".join(name for name, size in sizes.items() if size == 1)
            raise ValueError(
                f"objectives are tuned alike, and {given} would be given one setting while others are tuned; give it "
                "several learning_rates, or all others one"
            )
        if max(sizes.values()) > self.tuning.trainings:
            raise ValueError(
                f"tuning.trainings = {self.tuning.trainings} are fewer than the largest grid has settings, "
                f"{max(sizes.values())}; raise it"
            )
        if self.tuning.most is not None and self.tuning.most < self.tuning.trainings:
            raise ValueError(
                f"tuning.most = {self.tuning.most} is less than tuning.trainings = {self.tuning.trainings}, which "
                "every objective gets; raise it"
            )
        if self.tuning.every and self.training.steps % self.tuning.every:
            raise ValueError(
                f"tuning.every = {self.tuning.every} does not divide training.steps = {self.training.steps}; the last "
                "step is measured too"
            )
        return sizes

    def _check_training(self) -> None:
        """What rows and objectives say of their own is not said under [training] too, and trials share one encoded
        set."""
        training = self.training
        if training.encoding.mode == "stream":
            raise ValueError(
                "training.encoding.mode = 'stream' encodes anew in each run, and trials share what is encoded once; "
                "take 'store'"
            )
        for key, table, instead in (
            ("seed", training, "rows are trained from seeds 0, 1, 2, ...; give `seeds`"),
            ("labels", training, "give [labels], or a row's own"),
            ("reencode", training.encoding, "give a row's own"),
            ("learning_rate", training.optimizer, "give an objective's learning_rates"),
            ("beta", training.objective, "give an objective's betas"),
            ("validation", training, "trials learn from all prompts, and are measured on [validation]'s"),
        ):
            # The written configuration has every key.
            if getattr(table, key) != type(table).model_fields[key].get_default(call_default_factory=True):
                raise ValueError(f"training: '{key}' would not be used; {instead}")

    def identity(self) -> dict[str, Any]:
        """The fields that decide the figures, flat, by dotted name."""
        placing = {"output", "execution", "prices", "rehearse", "parallel", "trials"}
        content = self.model_dump(mode="json", exclude=placing)
        for choice in (content["model"], *content["generators"], *content["rewards"]):
            del choice["pool"], choice["batch_size"]
        for part in ("workers", "checkpoints", "prices", "rehearse", "encoding", "validation"):
            del content["training"][part]
        decides = {"checkpoints": {"explode_at"}, "encoding": {"dtype"}}
        changed = self.training.model_dump(mode="json", include=decides, exclude_defaults=True)
        content["training"] |= {part: values for part, values in changed.items() if values}
        for labels in (content["labels"], content["training"]["labels"]):
            # As ablations that were begun have it.
            labels["aggregation"] = labels["aggregation"] or "win_probability"
        for row in content["rows"]:
            del row["label"], row["paper"], row["tables"]  # how it is shown
        return dict(flatten(content))

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def tuned(self, name: str) -> TunedObjective:
        """The objective of that name."""
        return next(tuned for tuned in self.objectives if tuned.name == name)

    def synpic(self, output: str) -> SynPicConfig:
        """The dataset that all rows learn from."""
        return self.drawing(
            SynPicConfig, output, self.seed, self.prompts, self.generators, rewards=self.rewards
        )

    def trial_of(self, row: Row, setting: tuple[float, float], seed: int) -> RankDPOConfig:
        """A row's training."""
        return self.trial(self.tuned(row.objective), self.labels_of(row), setting, seed, row.reencode)

    def trial(
        self,
        tuned: TunedObjective,
        labels: LabelsConfig,
        setting: tuple[float, float],
        seed: int,
        reencode: bool = False,
    ) -> RankDPOConfig:
        """A training, without its dataset and output; `setting` is (learning rate, beta)."""
        base, (rate, beta) = self.training, setting
        fields = {name: getattr(base, name) for name in TrainingSettings.model_fields}
        fields |= {
            "seed": seed,
            "labels": labels,
            "encoding": base.encoding.model_copy(update={"reencode": reencode}),
            "prices": self.prices,
            "rehearse": self.rehearse,
            "validation": ValidationConfig(share=0.0),
            "objective": tuned.objective.model_copy(
                update={"beta": beta, "reference": base.objective.reference}
            ),
            "optimizer": base.optimizer.model_copy(update={"learning_rate": rate}),
        }
        return RankDPOConfig(dataset="-", output="-", model=self.model, **fields)

    def labels_of(self, row: Row) -> LabelsConfig:
        """The ablation's labels with what the row says in their place."""
        if row.labels is None:
            return self.labels
        given = {name: getattr(row.labels, name) for name in row.labels.model_fields_set}
        return self.labels.model_copy(update=given)

    def evaluation(self, output: str, drawn: DrawnConfig, models: dict[str, str | None]) -> MeasuredConfig:
        """Pictures and scores of several models by name, from the same seeds; None is the model as it starts."""
        alike = self.model.model_copy(update={"samples": drawn.samples, "seed_name": SEED_NAME})
        choices = [
            (alike if source is None else alike.at(source)).model_copy(update={"name": name})
            for name, source in models.items()
        ]
        return self.drawing(MeasuredConfig, output, drawn.seed, drawn.prompts, choices, rewards=self.rewards)
