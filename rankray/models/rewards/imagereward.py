"""ImageReward (Xu et al. 2023): BLIP with a head trained on human rankings, by the package's own modules, batched.

The package scores one prompt at a time and loads weights with `strict=False`; here keys are strict and the text
tower's vocabulary is asserted, because offline its tokenizer can load empty without an error.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rankray.config import ConfigError
from rankray.models.loading import file_of, fit, longer, one_line, read_plain, where
from rankray.models.rewards import RewardSpec
from rankray.models.rewards.clip import Batched, to_pixels
from rankray.models.rewards.submodule import import_alone

VOCABULARY = 30524
"""BERT's 30,522 tokens and BLIP's two of its own."""
TEXT_TOKENS = 35


class ImageReward(Batched):
    """The reward on one device. Scores: about -2.3 to 2, of mean 0 and deviation 1 on its training data.

    Args:
        spec: its row; options `file` and `med_config`, names in the repository or directory, and `tokenizer`, BERT's
            repository or directory; `vit`, sizes of another vision transformer than ViT-L/16 at 224 pixels.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: the package is missing or cannot live with this transformers, or weights or vocabulary differ.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        self.batch_size, self.device, self.dtype = spec.batch_size, device, getattr(torch, spec.dtype)
        with torch.device(device):  # its weights are copied there from the file, without a model on the host
            model = bare_model(spec)
        fit(model, read_plain(file_of(spec.source, spec.options["file"], spec.revision)), spec.source)
        model.device = device
        self.model: Any = model.to(device, self.dtype).eval().requires_grad_(False)

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts are longer than the text encoder reads."""
        return longer(self.model.blip.tokenizer, prompts, TEXT_TOKENS)

    def _score_batch(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        model = self.model
        # The package's own steps but for its last two, to a tensor and normalised, which a batch takes at once.
        *steps, _, normalise = model.preprocess.transforms
        shown = [functools.reduce(lambda x, step: step(x), steps, image.convert("RGB")) for image in images]
        pixels = to_pixels(shown, normalise.mean, normalise.std, self.device)
        seen = model.blip.visual_encoder(pixels.to(self.dtype))
        text = model.blip.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
        ).to(self.device)
        fused = model.blip.text_encoder(
            text.input_ids,
            attention_mask=text.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=self.device),
            return_dict=True,
        )
        rewards: Tensor = (model.mlp(fused.last_hidden_state[:, 0]) - model.mean) / model.std
        return rewards.squeeze(-1)


def bare_model(spec: RewardSpec) -> Any:
    """The package's model before weights are loaded, with this row's tokenizer and vision transformer.

    Raises:
        ConfigError: the package is missing or cannot live with this transformers.
    """
    try:
        parts = import_alone("ImageReward.models.BLIP.blip_pretrain")  # first, so that its parents are bare
        package = import_alone("ImageReward.ImageReward")
    except ImportError as error:
        raise ConfigError(
            f"reward 'imagereward' cannot import its package ({error}); run its pool in the environment "
            "'imagereward': rankray envs build imagereward"
        ) from None
    # The package asks the hub for `bert-base-uncased`, whatever the weights are.
    vars(parts)["init_tokenizer"] = lambda: _tokenizer(spec)
    if spec.options["vit"]:
        vars(parts)["create_vit"] = lambda *_: _vit(spec.options["vit"])
    sizes = file_of(spec.source, spec.options["med_config"], spec.revision)
    return package.ImageReward(device="cpu", med_config=str(sizes))


def _tokenizer(spec: RewardSpec) -> Any:
    """BERT's tokenizer with the two tokens that BLIP adds."""
    from transformers import BertTokenizer

    source, revision = spec.options["tokenizer"], spec.options["tokenizer_revision"]
    place, settings = where(source, revision)
    with one_line(source, revision):
        tokenizer = BertTokenizer.from_pretrained(place, **settings)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    if len(tokenizer) != VOCABULARY:
        raise ConfigError(
            f"the tokenizer of '{source}' has {len(tokenizer)} tokens with BLIP's two, due are "
            f"{VOCABULARY}; without its vocabulary file a tokenizer loads empty, without an error"
        )
    tokenizer.enc_token_id = tokenizer.convert_tokens_to_ids("[ENC]")
    return tokenizer


def _vit(sizes: Mapping[str, int]) -> tuple[Any, int]:
    """(the package's vision transformer of those sizes, its width)."""
    package = import_alone("ImageReward.models.BLIP.vit")
    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    return package.VisionTransformer(img_size=224, norm_layer=norm, **sizes), sizes["embed_dim"]
