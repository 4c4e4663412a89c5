"""VQAScore (Lin et al. 2024): P("Yes" | image, "Does this figure show ...?") of CLIP-FlanT5, by t2v-metrics.

The package's model is asked as its `CLIPT5Model.forward` does, but for three things: pictures come as they are, not
from files; a question is padded to its own length's next multiple of `PADDED`, not to the longest of its batch, which
moved P by up to 1 % in bfloat16 (on a small T5; the price is a batch that is not full for each length); and float32 is
computed in float32, where the package means bfloat16 on every GPU. It rounds weights to bfloat16 either way.

It needs transformers 4.57 (5.x silently drops 55 tensors), so its actors run in an environment of their own. 3 billion
parameters (xl) or 11 (xxl, the published default) make it the slowest of the five rewards by far.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from rankray.config import ConfigError
from rankray.models.loading import check_strict, files_of, one_line, where
from rankray.models.rewards import RewardSpec
from rankray.models.rewards.clip import Batched, Preprocessing
from rankray.models.rewards.submodule import import_alone

_MODULE = "t2v_metrics.models.vqascore_models.clip_t5_model"
_TOWER = "vision_tower."
PADDED = 64
"""Questions are padded to a multiple of so many tokens, and only those of one length are computed together."""


class VqaScore(Batched):
    """The reward on one device. Scores: in 0 .. 1, higher is better.

    Args:
        spec: its row; options `model`, the package's name of the model, `tokenizer`, FLAN-T5's repository or directory,
            `tower`, CLIP's repository or directory, which gives the image processor, and the weights of the tower
            where the checkpoint has none, and `vocabulary`, the size that it must have (0 takes what it has).
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: the package is missing, this transformers would drop weights in silence, or weights or vocabulary
            are not what the model needs.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        import transformers

        if int(transformers.__version__.split(".")[0]) >= 5:
            raise ConfigError(
                f"reward 'vqascore' needs transformers 4.57, here is {transformers.__version__}, which would drop "
                "weights in silence; run its pool in the environment 'vqascore': rankray envs build vqascore"
            )
        try:
            module = import_alone(_MODULE)
        except ImportError as error:
            raise ConfigError(
                f"reward 'vqascore' cannot import its package ({error}); rankray envs build vqascore"
            ) from None
        self.batch_size, self._module = spec.batch_size, module
        # In float16 T5 overflows; who asks for it has the other half precision, as the package has on a GPU.
        self._dtype = torch.float32 if spec.dtype == "float32" else torch.bfloat16
        name = _point(module, spec)
        with tempfile.TemporaryDirectory() as nothing:  # the package makes the directory that it is told
            self.model: Any = module.CLIPT5Model(model_name=name, device=device, cache_dir=nothing)
        self.model.model.to(self._dtype)
        self.preprocess = Preprocessing.from_config(self.model.image_processor.to_dict())
        self._squared = module.expand2square
        tokens, due = len(self.model.tokenizer), spec.options["vocabulary"]
        if due and tokens != due:
            raise ConfigError(
                f"the tokenizer of '{spec.options['tokenizer']}' has {tokens} tokens, due are {due}"
            )

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """As `Batched.score`, of pairs of one padded length at a time.

        Raises:
            ValueError: images and prompts differ in number.
        """
        if len(images) != len(prompts):
            return super().score(images, prompts)  # which says so
        lengths = [_padded(len(ids)) for ids in self._questions(prompts)]
        scores = np.empty(len(prompts), np.float32)
        for length in sorted(set(lengths)):
            places = [n for n, own in enumerate(lengths) if own == length]
            scores[places] = super().score([images[n] for n in places], [prompts[n] for n in places])
        return scores

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts, within the package's question, are longer than the 2,048 tokens that it keeps."""
        most = self.model.tokenizer.model_max_length
        return [len(ids) > most for ids in self._questions(prompts, whole=True)]

    def _questions(self, prompts: Sequence[str], whole: bool = False) -> list[list[int]]:
        """Token ids of each prompt within the package's question, the picture among them as one; cut unless `whole`."""
        module, model = self._module, self.model
        most = None if whole else model.tokenizer.model_max_length
        texts = [module.default_question_template.format(prompt) for prompt in prompts]
        asked = [module.format_question(text, model.conversational_style) for text in texts]
        return [module.t5_tokenizer_image_token(text, model.tokenizer)[:most] for text in asked]

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        model, device = self.model, torch.device(self.model.device)
        questions, pad = self._questions(prompts), model.tokenizer.pad_token_id
        length = _padded(max(len(ids) for ids in questions))
        ids = torch.tensor([[*own, *[pad] * (length - len(own))] for own in questions], device=device)
        answer = self._module.t5_tokenizer_image_token(self._module.default_answer_template, model.tokenizer)
        labels = torch.tensor([answer] * len(prompts), device=device)
        # Weights are of the dtype, what they meet is of float32: without autocast the package mixes precisions.
        with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = model.model(
                input_ids=ids,
                attention_mask=ids.ne(pad),
                decoder_attention_mask=torch.ones_like(labels, dtype=torch.bool),
                labels=labels,
                images=self._pixels(images),
                return_dict=True,
            ).logits
        # The mean over the answer's tokens, its end among them
        return (-cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").mean(1)).exp()

    def _pixels(self, images: list[Image.Image]) -> Tensor:
        """As the package's `load_images` makes them, squared by a border of the mean colour if so asked."""
        shown = [image.convert("RGB") for image in images]
        if self.model.image_aspect_ratio == "pad":
            border = tuple(int(value * 255) for value in self.preprocess.mean)
            shown = [self._squared(image, border) for image in shown]
        return self.preprocess.batch(shown, self.model.device)


def _padded(tokens: int) -> int:
    return -(-tokens // PADDED) * PADDED


def _point(module: ModuleType, spec: RewardSpec) -> str:
    """Points the package's row of the model at these weights, to be loaded strictly; the row's name."""
    rows, name = module.CLIP_T5_MODELS, spec.options["model"]
    if name not in rows:
        raise ConfigError(f"t2v-metrics has no CLIP-FlanT5 called '{name}'; it has {', '.join(rows)}")
    options = spec.options
    tokenizer = files_of(options["tokenizer"], options["tokenizer_revision"], ("*.json", "*.txt", "*.model"))
    tower = files_of(options["tower"], options["tower_revision"], ("*.json", "*.bin", "*.safetensors"))
    model_place, settings = where(spec.source, spec.revision)
    paths = {"model": model_place, "tokenizer": tokenizer}
    rows[name] = {part: {**rows[name][part], "path": path} for part, path in paths.items()}
    # From where it is defined: in `module` it may be an earlier reward's of this process.
    original = importlib.import_module(f"{module.__package__}.clip_t5.model").CLIPT5ForConditionalGeneration

    class Strict:
        """Loads what the original does, with this row's tower, and refuses weights that do not fit."""

        @staticmethod
        def from_pretrained(place: str, cache_dir: str) -> Any:
            with one_line(spec.source, spec.revision):
                config = original.config_class.from_pretrained(place, **settings)
                config.mm_vision_tower = tower
                # As the package rounds them anyway: in float32, as it reads them, xxl takes 45 GB of the host.
                model, info = original.from_pretrained(
                    place, config=config, torch_dtype=torch.bfloat16, output_loading_info=True, **settings
                )
            missing = [key for key in info["missing_keys"] if not key.startswith(_TOWER)]
            check_strict(spec.source, {**info, "missing_keys": missing})
            if len(missing) < len(info["missing_keys"]):
                # The tower comes from its own repository, and what a checkpoint lacks was made random since.
                model.get_vision_tower().load_model()
            return model

    vars(module)["CLIPT5ForConditionalGeneration"] = Strict
    return str(name)
