"""The configuration of RankDPO (paper section 3.3, Algorithm 2) and of its whole loop (Algorithm 3).

Every default that the paper prints is the paper's; those that it leaves open (beta, learning rate, optimizer) say in
`jobs/rankdpo-*.toml` where their value comes from. As in Syn-Pic, what decides the result forms the run's identity,
and what decides only how fast it is reached (workers, micro-batches, logging) may change between a kill and a resume.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from rankray.config import (
    DRAWN_BY,
    MAX_CANDIDATES,
    REHEARSE,
    SCORED_BY,
    ConfigError,
    DrawingJob,
    GeneratorChoice,
    Gpus,
    PricesConfig,
    PromptsConfig,
    RewardChoice,
    Strict,
    SynPicConfig,
    build,
    flatten,
    nearest,
    require_built,
)

REFERENCE_FREE = frozenset({"sft", "weighted_sft", "mapo"})
"""Objectives that never look at reference errors: a run with one of them holds no reference."""

SCORED = frozenset({"weighted_sft"})
"""Objectives that need one reward's scores."""

WITHOUT_PAIRS = frozenset({"sft", "weighted_sft"})
"""Objectives that learn where no candidate is preferred to another: from a dataset of ties."""


_REMEDIES = ("nll", "dpop", "clamp", "safeguard")
OPTIONS: dict[str, tuple[str, ...]] = {
    "rank_dpo": ("gain", "discount", *_REMEDIES),
    "dpo": ("pairs", *_REMEDIES),
    "dpo_gain": ("pairs", "gain", *_REMEDIES),
    "mapo": ("snr", "pairs"),
}
"""The options of each objective that has any."""


class ObjectiveOptions(Strict):
    """What values an objective's options may have; their defaults are the loss's own."""

    model_config = ConfigDict(strict=True)

    gain: Literal["exp2", "linear"] = "exp2"
    discount: Literal["log", "log2", "reciprocal", "none"] = "log"
    pairs: Literal["best_worst", "all"] = "best_worst"
    snr: float = Field(0.5, gt=0)
    nll: float = Field(0.0, ge=0)
    dpop: float = Field(0.0, ge=0)
    clamp: float | None = Field(None, ge=0)
    safeguard: float | None = Field(None, ge=0, le=1)


class ObjectiveConfig(Strict):
    """What is minimised (`rankray.losses`)."""

    name: Literal["rank_dpo", "dpo", "dpo_gain", "sft", "weighted_sft", "plackett_luce", "mapo", "kto"] = (
        Field("rank_dpo", description="the loss; rank_dpo is the paper's Eq. 7")
    )
    beta: float = Field(
        2500.0, gt=0, description="on errors as means and without a one-half; see docs/rankdpo.md"
    )
    options: dict[str, Any] = Field({}, description="further arguments of the loss, such as {pairs = 'all'}")
    reward: str | None = Field(None, description="the reward whose scores weigh weighted_sft")
    reference: Literal["auto", "copy", "adapter_off", "precomputed"] = Field(
        "copy",
        description="where reference errors come from: a second model, the model without LoRA, a stage ahead; "
        "auto takes a second model where the GPUs have room for it",
    )

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        name = info.data.get("name")  # None where that was found wrong itself
        allowed = OPTIONS.get(name or "", ())
        for key in options:
            if name is not None and key not in allowed:
                raise ValueError(
                    f"{name} has no option '{key}'{nearest(key, allowed)}; it has: {', '.join(allowed) or 'none'}"
                )
        try:
            build(ObjectiveOptions, options)
        except ConfigError as error:
            raise ValueError(str(error).replace("\n", "; ")) from None
        return options

    @model_validator(mode="after")
    def _reward(self) -> ObjectiveConfig:
        if self.name == "weighted_sft" and self.reward is None:
            raise ValueError("weighted_sft weighs by one reward's scores: give objective.reward = 'NAME'")
        return self


class LabelsConfig(Strict):
    """Whose judgement of which candidates is learnt from (`rankdpo.labels`); by default the dataset's own ranking."""

    rewards: tuple[str, ...] = Field(
        (), description="rank by these rewards' stored scores; if empty, as the dataset itself does"
    )
    aggregation: Literal["win_probability", "borda", "majority", "mean_z", "random"] | None = Field(
        None,
        description="how scores become a ranking; unless given win_probability of rewards, else the dataset's own; "
        "random asks no reward",
    )
    samples: dict[str, int] = Field(
        {}, description="generators that take part, and how many of their samples; all if empty"
    )
    prompt_share: float = Field(1.0, gt=0, le=1, description="a random share of the prompts")
    pairs: Literal["all", "within", "across"] = Field(
        "all",
        description="pairs that are learnt from: all, of one generator's pictures, or of two generators'",
    )


class NoiseConfig(Strict):
    """Times and noise (Algorithm 2, lines 3 and 4)."""

    distribution: Literal["uniform", "logit_normal"] | None = Field(
        None, description="of times; what the model's family was trained with unless given"
    )
    mean: float = Field(0.0, description="of the logit-normal")
    std: float = Field(1.0, gt=0, description="of the logit-normal")
    shared: bool = Field(
        False, description="one noise for all candidates of a prompt, as Diffusion-DPO has it"
    )
    weighting: Literal["none", "min_snr"] = Field(
        "none", description="of errors by their time; min_snr caps the signal-to-noise ratio at 5"
    )
    prompt_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of prompts made empty; Diffusion-DPO: 0.2"
    )
    sample_latents: bool = Field(
        True, description="sample the autoencoder's posterior instead of taking its mean"
    )


class TunedConfig(Strict):
    """What of the model is trained."""

    train: Literal["full", "lora"] | tuple[str, ...] = Field(
        "full",
        description="all of the denoiser, LoRA adapters, or modules whose names hold one of these strings",
    )
    lora_rank: int = Field(64, ge=1, description="of the adapters")
    lora_alpha: int | None = Field(
        None, ge=1, description="adapters are scaled by it over their rank; lora_rank unless given"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="in which the model computes; what is learnt is kept in float32"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations a second time instead of keeping them: less memory, more time"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of averaged weights, which are then the result"
    )


class OptimizerConfig(Strict):
    """How the weights move."""

    name: Literal["adamw", "sgd"] = Field("adamw", description="how gradients become steps")
    learning_rate: float = Field(
        1e-5, ge=0, description="0 trains nothing, and gives back the model as it was"
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.999), description="of adamw: decay of its means of gradients and of their squares"
    )
    eps: float = Field(1e-8, gt=0, description="of adamw: what is added to the root it divides by")
    weight_decay: float = Field(0.01, ge=0, description="pull of all trained weights towards 0")
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="of the learning rate after warm-up; cosine and linear fall to 0"
    )
    warmup_steps: int = Field(0, ge=0, description="in which the learning rate rises from 0")
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 is no limit")

    @field_validator("name", mode="before")
    @classmethod
    def _by_weight(cls, name: Any) -> Any:
        if name in ("adafactor", "adamw_8bit"):
            raise ValueError(
                f"{name} looks at whole tensors or blocks, and ZeRO hands a worker a slice of all: its steps would "
                "depend on workers.count; take adamw"
            )
        return name


class EncodingConfig(Strict):
    """Latents and text embeddings: computed once and kept beside the dataset, or while trainers train."""

    mode: Literal["store", "stream"] = Field(
        "store", description="encode once and keep it, or anew while trainers train"
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="of latents and embeddings; float16 takes half the room"
    )
    place: str | None = Field(None, description="where they are kept; DATASET/encoded unless given")
    min_size: int = Field(1, ge=1, description="encoding actors")
    max_size: int | None = Field(
        None, ge=1, description="encoding actors at most, as nodes join; min_size unless given"
    )
    num_cpus: float = Field(0.25, ge=0, description="CPUs that Ray reserves for an encoding actor")
    num_gpus: Gpus = Field(0.0, description="GPUs of an encoding actor; a fraction shares one")
    batch_size: int = Field(16, ge=1, description="pictures encoded at once")
    reencode: bool = Field(
        False, description="pictures as the model's autoencoder gives them back, so that all have its look"
    )


class WorkersConfig(Strict):
    """Ray Train's workers and DeepSpeed's ZeRO. Nothing here changes what is learnt, beyond rounding."""

    count: int = Field(1, ge=1, description="workers that train")
    max_count: int | None = Field(None, ge=1, description="elastic: grow to so many as nodes join")
    resize_every_s: float = Field(
        60.0,
        ge=0,
        description="elastic: how often to look for new nodes; growing repeats steps since a checkpoint",
    )
    num_cpus: float = Field(1.0, gt=0, description="CPUs that Ray reserves for a worker")
    num_gpus: Gpus = Field(0.0, description="GPUs of one worker: 0 or 1")
    wait_for_nodes_s: float = Field(
        0.0, ge=0, description="how long to wait for nodes that the encoders and workers.count workers need"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="what workers share out: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too"
    )
    offload: bool = Field(
        False, description="optimizer state in host memory (stages 1 to 3), parameters too (3)"
    )
    micro_batch: int | None = Field(
        None, ge=1, description="prompts at once on a worker; what fits is tried unless given"
    )
    max_failures: int = Field(3, ge=-1, description="lost workers to recover from; -1 is any number")


class CheckpointsConfig(Strict):
    """What is kept of a run, and what is looked at."""

    every: int = Field(50, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="last checkpoints; the best is kept beside them")
    export_dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="of the pipeline's trained part; that of the published weights unless given"
    )
    sample_every: int = Field(0, ge=0, description="steps between picture grids; 0 draws none")
    sample_prompts: tuple[str, ...] = Field(
        (), description="prompts of the grids; four of the dataset's if empty"
    )
    tensorboard: bool = Field(False, description="curves in OUTPUT/tensorboard")
    wandb: str | None = Field(
        None, description="a Weights & Biases project; needs that package and its login"
    )
    mlflow: str | None = Field(None, description="an MLflow experiment; needs that package and a server")
    mlflow_uri: str | None = Field(None, description="where MLflow is; MLFLOW_TRACKING_URI unless given")
    bad_steps: int = Field(
        10, ge=0, description="steps with a loss that is not finite, or explodes, before it stops"
    )
    explode_at: float = Field(
        1e4, gt=0, description="a loss above this is skipped like one that is not finite"
    )


class ValidationConfig(Strict):
    """Prompts that a run does not learn from, and what it does about what they say (`rankdpo.validation`)."""

    share: float = Field(
        0.05, ge=0, lt=1, description="of the prompts, by a hash of each, that are held out; 0 turns it off"
    )
    min_prompts: int = Field(64, ge=2, description="that are held out at least, each with all its rows")
    max_prompts: int = Field(512, ge=2, description="that are held out at most")
    every: int = Field(25, ge=1, description="steps between two validations")
    draws: int = Field(16, ge=1, description="fixed times and noises a prompt, stratified over time")
    stop: Literal["none", "patience"] = Field(
        "none",
        description="none takes all steps and exports the last, as the paper; patience stops when validation no longer "
        "gets better, and exports the best",
    )
    patience: int = Field(4, ge=1, description="validations without a better one before it stops")
    max_rise: float = Field(
        0.05, ge=0, description="by how much the error on preferred candidates may exceed the reference's"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ValidationConfig:
        if self.min_prompts > self.max_prompts:
            raise ValueError(
                f"validation.min_prompts {self.min_prompts} is above validation.max_prompts {self.max_prompts}"
            )
        if self.stop == "patience" and not self.share:
            raise ValueError(
                "validation.stop = 'patience' looks at held-out prompts, and validation.share = 0 holds none out: give "
                "a share, such as 0.05, or stop = 'none'"
            )
        return self


class TrainingSettings(Strict):
    """How a model is trained, whatever it is and whatever on."""

    seed: int = Field(0, ge=0, lt=2**63, description="of the prompts' order, times, noise and dropout")
    steps: int = Field(400, ge=1, description="times that the weights are updated")
    batch_size: int = Field(1024, ge=1, description="prompts a step over all workers")
    objective: ObjectiveConfig = ObjectiveConfig()
    labels: LabelsConfig = LabelsConfig()
    noise: NoiseConfig = NoiseConfig()
    tuned: TunedConfig = TunedConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()
    encoding: EncodingConfig = EncodingConfig()
    workers: WorkersConfig = WorkersConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    prices: PricesConfig = PricesConfig()
    rehearse: bool = REHEARSE

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if self.objective.reference == "adapter_off" and self.tuned.train != "lora":
            raise ValueError(
                "objective.reference adapter_off needs LoRA: set tuned.train = 'lora', or take copy"
            )
        if self.objective.reference == "precomputed" and self.encoding.mode == "stream":
            raise ValueError(
                "objective.reference precomputed reads the encoded set, and encoding.mode = 'stream' keeps none: take "
                "copy, auto, or encoding.mode = 'store'"
            )
        if self.workers.num_gpus not in (0.0, 1.0):
            raise ValueError("workers.num_gpus is 0 or 1; more workers take more GPUs")
        if self.workers.zero_stage == 0 and self.tuned.dtype != "float32":
            raise ValueError(
                "workers.zero_stage 0 keeps no float32 masters: take 1, or tuned.dtype = 'float32'"
            )
        if self.labels.pairs != "all":
            self._takes_some_pairs()
        self._divisible()
        return self

    def _takes_some_pairs(self) -> None:
        objective = self.objective
        if objective.name != "rank_dpo" and objective.options.get("pairs") != "all":
            raise ValueError(
                f"labels.pairs = '{self.labels.pairs}' leaves out pairs, and {objective.name} does not take a "
                "ranking's pairs one by one: take rank_dpo, or dpo, dpo_gain or mapo with objective.options "
                "{pairs = 'all'}"
            )

    def _divisible(self) -> None:
        workers = self.workers
        most, micro = workers.max_count or workers.count, workers.micro_batch or 1
        if most < workers.count:
            raise ValueError(f"workers.max_count {most} is below workers.count {workers.count}")
        if workers.max_count is None and self.batch_size % (workers.count * micro):
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided among {workers.count} workers x micro_batch "
                f"{micro}; take a multiple of {workers.count * micro}"
            )
        if self.batch_size < most:
            raise ValueError(f"batch_size {self.batch_size} leaves some of {most} workers without a prompt")


class MixedConfig(Strict):
    """A further dataset of a run, and how often its rows come."""

    dataset: str = Field(min_length=1, description="a finished ranked dataset: a directory or URI")
    weight: float = Field(gt=0, description="rows of it for each row of the run's `dataset`")
    labels: LabelsConfig = LabelsConfig()


class RankDPOConfig(TrainingSettings):
    """RankDPO (paper section 3.3, Algorithm 2): a ranked dataset and a model -> a better model."""

    dataset: str = Field(min_length=1, description="a finished ranked dataset: a directory or URI")
    mix: tuple[MixedConfig, ...] = Field(
        (), description="further datasets, such as [{dataset = '/data/human', weight = 0.25}]"
    )
    output: str = Field(min_length=1, description="an absolute directory, or a URI such as s3://bucket/name")
    model: GeneratorChoice = Field(
        description="the model that is tuned: a generator's row, with its own source"
    )

    @model_validator(mode="after")
    def _mixes(self) -> RankDPOConfig:
        if not self.mix:
            return self
        places = [one.dataset for one in self.sets]
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice is not None:
            raise ValueError(f"mix: dataset '{twice}' stands twice; give it once, with one weight")
        if self.objective.name in SCORED:
            raise ValueError(
                f"{self.objective.name} weighs by a reward's scores, which other datasets' rewards do not share: "
                "leave mix out, or make one dataset of them with `rankray import`"
            )
        if any(one.labels.pairs != "all" for one in self.sets):
            raise ValueError(
                "labels.pairs goes by a generator's place in the row, which differs between datasets: "
                "with mix take 'all'"
            )
        return self

    @property
    def sets(self) -> tuple[MixedConfig, ...]:
        """All datasets, the run's own first, with weight 1."""
        return (MixedConfig(dataset=self.dataset, weight=1.0, labels=self.labels), *self.mix)

    def identity(self) -> dict[str, Any]:
        """The fields that decide what is learnt, flat, by dotted name."""
        content = self.model_dump(
            mode="json",
            exclude={
                "output": True,
                "workers": True,
                "checkpoints": True,
                "prices": True,
                "rehearse": True,
                "encoding": {"mode", "place", "min_size", "max_size", "num_cpus", "num_gpus", "batch_size"},
            },
        )
        del content["objective"]["reference"]  # the values are the same to rounding, whoever computes them
        del content["model"]["pool"], content["model"]["batch_size"], content["model"]["seed_name"]
        for labels in (content["labels"], *(mixed["labels"] for mixed in content["mix"])):
            # As runs that were begun have it.
            labels["aggregation"] = labels["aggregation"] or "win_probability"
        if self.labels in (LabelsConfig(), LabelsConfig(aggregation="win_probability")):
            del content["labels"]  # a run that was begun before there were any goes on
        elif self.labels.pairs == "all":
            del content["labels"]["pairs"]  # likewise, and below
        if not self.encoding.reencode:
            del content["encoding"]["reencode"]
        # Which steps are taken, and what leaves; the others say what is kept and shown.
        decides = {"explode_at", "export_dtype"}
        if changed := self.checkpoints.model_dump(mode="json", include=decides, exclude_defaults=True):
            content["checkpoints"] = changed
        if not self.validation.share:
            del content["validation"]
        if not self.mix:
            del content["mix"]
        return dict(flatten(content))


class HeldOutConfig(Strict):
    """What the model is measured on before and after: prompts that no round trains on."""

    prompts: PromptsConfig
    samples: int = Field(
        2, ge=2, le=MAX_CANDIDATES, description="pictures a prompt, of the same seeds each time"
    )
    seed: int = Field(1, ge=0, lt=2**63, description="of their pictures, each time the same")


class AlignConfig(DrawingJob):
    """Algorithm 3: prompts -> Syn-Pic -> encode -> RankDPO -> before and after, in rounds, as one job."""

    rounds: int = Field(1, ge=1, description="each round's data are drawn by the model of the round before")
    model: GeneratorChoice = Field(
        description="the model that is tuned; generators of its label draw as it learns"
    )
    prompts: PromptsConfig
    generators: tuple[GeneratorChoice, ...] = DRAWN_BY
    rewards: tuple[RewardChoice, ...] = SCORED_BY
    seed: int = Field(
        0, ge=0, lt=2**62, description="of the first round's pictures; later ones count on from it"
    )
    training: TrainingSettings = TrainingSettings()
    held_out: HeldOutConfig

    @model_validator(mode="after")
    def _parts(self) -> AlignConfig:
        require_built("", lambda: self.synpic("-", 1, None))
        require_built("[training] ", lambda: self.rankdpo("-", "-", None))
        require_built("held out: ", lambda: self.evaluation("-", None))
        return self

    def synpic(self, output: str, number: int, source: str | None) -> SynPicConfig:
        """Syn-Pic of a round (from 1); `source` is where the model of the round before stands, None at the start."""
        seed, drawn = self.seed + number - 1, [self._current(choice, source) for choice in self.generators]
        return self.drawing(SynPicConfig, output, seed, self.prompts, drawn, rewards=self.rewards)

    def rankdpo(self, dataset: str, output: str, source: str | None) -> RankDPOConfig:
        """RankDPO of a round, from the model of the round before."""
        fields = {name: getattr(self.training, name) for name in TrainingSettings.model_fields}
        fields |= {"prices": self.prices, "rehearse": self.rehearse}
        return RankDPOConfig(dataset=dataset, output=output, model=self._tuned(source), **fields)

    def evaluation(self, output: str, source: str | None) -> SynPicConfig:
        """Pictures and scores of held-out prompts; one label for all, so that their seeds are the same."""
        held = self.held_out
        model = self._tuned(source).model_copy(update={"name": "model", "samples": held.samples})
        return self.drawing(SynPicConfig, output, held.seed, held.prompts, [model], rewards=self.rewards)

    def _tuned(self, source: str | None) -> GeneratorChoice:
        return self.model if source is None else self.model.at(source)

    def _current(self, choice: GeneratorChoice, source: str | None) -> GeneratorChoice:
        return choice if source is None or choice.label != self.model.label else choice.at(source)
