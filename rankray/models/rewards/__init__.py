"""The REWARDS table: every reward model that a configuration can name, as data.

A reward is one file with one class behind one contract: constructed `Class(spec=..., device=...)`, then
`score(images, prompts) -> float32[len]`, batched. Importing this module loads neither torch nor transformers:
the driver does it, and rewards whose packages conflict never meet in one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rankray.config import ConfigError, RewardChoice, nearest
from rankray.models.targets import (
    UNRECORDED,
    UNRESOLVED,
    Found,
    Target,
    check_files,
    find,
    same_place,
    unknown_model,
    user_target,
)


@dataclass(frozen=True)
class RewardSpec:
    """One reward model.

    Attributes:
        target: "module:Class" of its file.
        source: hub repository, directory or file of its weights, "shapes:NAME", or a server's URL.
        revision: branch, tag or commit; a hub branch is resolved to its commit before the job starts.
        dtype: "float32", "float16" or "bfloat16".
        batch_size: pairs computed at once; smaller remainders are padded to it.
        num_gpus, num_cpus: of one actor.
        full_size: file of `rewards/full_size` that says what it is made of, from which a plan gets memory and speed.
        options: further settings of the class with their defaults; a configuration may change these and no others.
        environment: overlay environment of its actors (`rankray.models.environments`), None for the job's own.
        parts: what it loads beside its weights: the option that names a repository or directory (None: the weights'
            own) -> the option that holds its revision. Each is resolved and recorded as the weights are.
        pickled: its weights are published as a pickle of plain tensors, which is read with `weights_only=True`.
    """

    target: str
    source: str
    revision: str = "main"
    dtype: str = "float32"
    batch_size: int = 32
    num_gpus: float = 1.0
    num_cpus: float = 1.0
    full_size: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: str | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    pickled: bool = False


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
    options={"aspect": "quality", "vocabulary": 32000},
    pickled=True,
)

_MPS = RewardSpec(
    target="rankray.models.rewards.mps:Mps",
    source="~/.cache/rankray/mps",  # converted from the published pickle: docs/rewards.md
    full_size="mps",
    options={
        "processor": _CLIP_H,
        "processor_revision": "main",
        "vocabulary": _CLIP_VOCABULARY,
        "condition": None,
        "threshold": None,
    },
    parts=_PROCESSOR,
)

REWARDS: dict[str, RewardSpec] = {
    "pickscore": _PICKSCORE,
    "clipscore": _CLIPSCORE,
    "mps": _MPS,
    "hpsv2.1": RewardSpec(
        target="rankray.models.rewards.hpsv2:Hpsv2",
        source="xswu/HPSv2",
        full_size="clip-h",
        options={"file": "HPS_v2.1_compressed.pt", "architecture": "ViT-H-14", "antialias": False},
        environment="hpsv2",
        pickled=True,
    ),
    "hps-v2.0": RewardSpec(
        target="rankray.models.rewards.hpsv2:Hpsv2",
        source="xswu/HPSv2",
        full_size="clip-h",
        options={"file": "HPS_v2_compressed.pt", "architecture": "ViT-H-14", "antialias": False},
        environment="hpsv2",
        pickled=True,
    ),
    "imagereward": RewardSpec(
        target="rankray.models.rewards.imagereward:ImageReward",
        source="THUDM/ImageReward",
        full_size="imagereward",
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
        options={"timeout_s": 60.0, "retries": 3, "format": "png", "token_env": None},
    ),
    "shapes-pickscore": _shapes(_PICKSCORE, "shapes-pickscore", processor=None, vocabulary=None),
    "shapes-clipscore": _shapes(_CLIPSCORE, "shapes-clipscore", processor=None, vocabulary=None),
    "shapes-mps": _shapes(_MPS, "shapes-mps", processor=None, vocabulary=None),
}


def resolve(choice: RewardChoice, look_up: bool = True) -> Target:
    """What a pool has to run for one reward of the configuration.

    Args:
        choice: its entry there.
        look_up: find its weights and what identifies them; without, nothing is read and nobody asked.

    The choice's own settings replace the row's; `options` may hold the keys of the row's own `options`.

    Raises:
        ConfigError: unknown name (nearest match given), unknown option, or weights that cannot be found.
    """
    if ":" in choice.model:
        return user_target(choice, "reward")
    if choice.model not in REWARDS:
        raise unknown_model("reward", choice.model, REWARDS)
    spec = REWARDS[choice.model]
    if choice.source is not None:
        spec = replace(spec, revision="main")
    given = {key: getattr(choice, key) for key in ("batch_size", "dtype", "source", "revision")}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    spec = replace(spec, **changes)
    for key in choice.options:
        if key not in spec.options:
            allowed = ", ".join(spec.options) or "none"
            raise ConfigError(
                f"reward '{choice.label}': unknown option '{key}'{nearest(key, spec.options)}; allowed: {allowed}"
            )
    spec = replace(spec, options={**spec.options, **choice.options})
    if not spec.source:
        raise ConfigError(
            f"reward '{choice.label}' has no weights of its own; give it a `source`: docs/rewards.md"
        )
    found = {"": Found(spec.source, spec.revision, UNRECORDED)}
    if look_up:
        check_files(spec.source, spec.pickled)
        spec, found = _looked_up(spec)
    return Target(
        name=choice.label,
        target=spec.target,
        kwargs={"spec": spec},
        revision="; ".join(f"{part}={one.recorded}" if part else one.recorded for part, one in found.items()),
        num_gpus=spec.num_gpus,
        num_cpus=spec.num_cpus,
        environment=spec.environment,
        unresolved=tuple(one.source for one in found.values() if one.recorded.startswith(UNRESOLVED)),
    )


def _looked_up(spec: RewardSpec) -> tuple[RewardSpec, dict[str, Found]]:
    """The row with its commits in it, and what was found of its weights, under "", and of its parts by name.

    A part that lies in the weights' own directory or repository has no revision of its own.
    """
    found = {"": find(spec.source, spec.revision)}
    options = dict(spec.options)
    for part, pin in spec.parts.items():
        place = spec.options[part]
        if place is None:
            continue
        own = same_place(place, spec.source)
        one = found[""] if own else find(place, spec.options[pin])
        options[part], options[pin] = one.source, one.revision
        if not own:
            found[part] = one
    return replace(spec, source=found[""].source, revision=found[""].revision, options=options), found
