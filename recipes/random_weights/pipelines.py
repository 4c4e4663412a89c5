"""Pipelines of the published classes with random weights, small enough to build, save and load in a second each.

They draw noise, and all else is as it is with real weights: loading, calling, batching, seeds. 64 x 64 pixels, a
million parameters or fewer; the tokenizers are those of the shapes world, which know thirty words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    Mistral3Config,
    Mistral3Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from recipes.shapes.text import WORDS, clip_tokenizer, t5_tokenizer

WIDTH = 32


def _clip_config(projection: int = WIDTH) -> CLIPTextConfig:
    tokenizer = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _vae(channels: int) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
    )


def _t5(width: int = WIDTH) -> T5EncoderModel:
    text = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=width,
        d_kv=16,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
    )
    return T5EncoderModel(text)


def sdxl() -> Any:
    """SDXL: UNet with added time ids, two CLIP text encoders."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=CLIPTextModel(_clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"),
        add_watermarker=False,
    )


def sd3(with_t5: bool = True) -> Any:
    """SD3: MMDiT with two CLIP text encoders, and T5 or none."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(4),
        text_encoder=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=_t5(2 * WIDTH) if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )


def pixart() -> Any:
    """PixArt-Sigma: DiT with cross-attention to T5."""
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        patch_size=2,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=_t5(),
        vae=_vae(4),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def cascade() -> Any:
    """Stable Cascade: stage C makes an 8 x 8 embedding, stage B 16 x 16 latents, the VQGAN 64 x 64 pixels."""
    common: dict[str, Any] = {
        "timestep_ratio_embedding_dim": 16,
        "conditioning_dim": 32,
        "block_out_channels": (32, 32),
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "down_blocks_repeat_mappers": (1, 1),
        "up_blocks_repeat_mappers": (1, 1),
        "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
    }
    prior = diffusers.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
        clip_image_in_channels=WIDTH,
        switch_level=(False,),
        self_attn=True,
        timestep_conditioning_type=("sca", "crp"),
        **common,
    )
    decoder = diffusers.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        clip_text_pooled_in_channels=WIDTH,
        effnet_in_channels=4,
        pixel_mapper_in_channels=3,
        patch_size=1,
        self_attn=True,
        timestep_conditioning_type=("sca",),
        **common,
    )
    return diffusers.StableCascadeCombinedPipeline(
        tokenizer=clip_tokenizer(),
        text_encoder=CLIPTextModelWithProjection(_clip_config()),
        decoder=decoder,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(
            levels=2, bottleneck_blocks=1, embed_dim=16, latent_channels=4, num_vq_embeddings=16
        ),
        prior_prior=prior,
        prior_text_encoder=CLIPTextModelWithProjection(_clip_config()),
        prior_tokenizer=clip_tokenizer(),
        prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


def sd15() -> Any:
    """Stable Diffusion 1.5: a UNet with one CLIP text encoder."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    return diffusers.StableDiffusionPipeline(
        vae=_vae(4),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flux() -> Any:
    """FLUX.1-dev: double and single stream blocks with embedded guidance, CLIP and T5."""
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(4),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=t5_tokenizer(),
    )


def _decoder(tokenizer: Any) -> dict[str, Any]:
    """Sizes of a language model that decodes, from which newer pipelines take their texts."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }


def _chat_tokenizer() -> Any:
    """One with a form for conversations, which is the words themselves."""
    tokenizer = t5_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def _word_tokenizer() -> Any:
    """A token a word and a run of signs: Qwen-Image leaves out as many as its own instruction has."""
    inner: Any = Tokenizer(
        models.WordLevel({"<pad>": 0, "<unk>": 1, **{w: n for n, w in enumerate(WORDS, 2)}}, "<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<pad>", unk_token="<unk>"
    )


def _sana(pipeline: Any, scheduler: Any, **more: Any) -> Any:
    tokenizer = t5_tokenizer()
    text = Gemma2Config(**{**_decoder(tokenizer), "num_hidden_layers": 2})
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=8,
        **more,
    )
    blocks = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_out_channels=(8, 8, 16, 16),
        decoder_block_out_channels=(8, 8, 16, 16),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
        scaling_factor=1.0,
        **blocks,
    )
    return pipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(text),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )


def sana() -> Any:
    """Sana: linear attention, an autoencoder that compresses deeply, a Gemma 2 for text."""
    scheduler = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    return _sana(diffusers.SanaPipeline, scheduler)


def sana_sprint() -> Any:
    """Sana-Sprint: Sana with guidance embedded, distilled to two steps."""
    scheduler = diffusers.SCMScheduler()
    return _sana(
        diffusers.SanaSprintPipeline, scheduler, guidance_embeds=True, qk_norm="rms_norm_across_heads"
    )


def chroma() -> Any:
    """Chroma: FLUX without CLIP, its modulation from one small network, guided."""
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(4),
        text_encoder=_t5(),
        tokenizer=t5_tokenizer(),
    )


def lumina2() -> Any:
    """Lumina-Image 2.0: text and picture as one sequence, a Gemma 2 for text."""
    tokenizer = t5_tokenizer()
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=2 * WIDTH,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 12, 12),
        axes_lens=(64, 16, 16),
        cap_feat_dim=WIDTH,
    )
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(4),
        text_encoder=Gemma2Model(Gemma2Config(**_decoder(tokenizer))),
        tokenizer=tokenizer,
    )


def cogview4() -> Any:
    """CogView4: MMDiT with one GLM for text."""
    tokenizer = t5_tokenizer()
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )
    return diffusers.CogView4Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
        ),
        vae=_vae(4),
        text_encoder=GlmModel(GlmConfig(**_decoder(tokenizer))),
        tokenizer=tokenizer,
    )


def z_image() -> Any:
    """Z-Image: text and picture as one sequence, a Qwen 3 for text."""
    tokenizer = _chat_tokenizer()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=2 * WIDTH,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 12, 12],
        axes_lens=[128, 16, 16],
    )
    return diffusers.ZImagePipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(4),
        text_encoder=Qwen3Model(Qwen3Config(**_decoder(tokenizer))),
        tokenizer=tokenizer,
    )


def _flux2_vae() -> Any:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16, 16, 16),
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=64,
        mid_block_add_attention=False,
    )


def flux2_klein() -> Any:
    """FLUX.2 klein: double and single stream blocks, three layers of a Qwen 3 for text."""
    tokenizer = _chat_tokenizer()
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return diffusers.Flux2KleinPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_flux2_vae(),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_decoder(tokenizer))),
        tokenizer=tokenizer,
        is_distilled=True,
    )


def qwen_image() -> Any:
    """Qwen-Image: MMDiT, an autoencoder for films, a Qwen 2.5-VL for text."""
    tokenizer = _word_tokenizer()
    sizes = {key: value for key, value in _decoder(tokenizer).items() if key != "head_dim"}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    text = Qwen2_5_VLConfig(text_config={**sizes, "rope_parameters": rope}, vision_config=vision)
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    return diffusers.QwenImagePipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(text),
        tokenizer=tokenizer,
    )


def ernie_image() -> Any:
    """ERNIE-Image: one stream, FLUX.2's autoencoder, a Mistral 3 for text, and no enhancer of prompts."""
    tokenizer = t5_tokenizer()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = Mistral3Config(
        text_config={"model_type": "mistral", **_decoder(tokenizer)},
        vision_config={"model_type": "pixtral", "head_dim": 8, "image_size": 16, "patch_size": 8, **vision},
    )
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=2 * WIDTH,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=WIDTH,
        in_channels=16,
        out_channels=16,
        text_in_dim=WIDTH,
        rope_axes_dim=(8, 12, 12),
    )
    return diffusers.ErnieImagePipeline(
        transformer=transformer,
        vae=_flux2_vae(),
        text_encoder=Mistral3Model(text),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=4.0),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "sdxl": sdxl,
    "sd3-medium": sd3,
    "pixart-sigma": pixart,
    "stable-cascade": cascade,
    "sd15": sd15,
    "flux-dev": flux,
    "sana": sana,
    "sana-sprint": sana_sprint,
    "chroma": chroma,
    "lumina2": lumina2,
    "cogview4": cogview4,
    "z-image-turbo": z_image,
    "flux2-klein": flux2_klein,
    "qwen-image": qwen_image,
    "ernie-image": ernie_image,
}
"""By the generators' names."""


def awaken(pipe: Any) -> None:
    """Gives zero-initialised weights (gates, output layers) values, so that every layer has a say."""
    generator = torch.Generator().manual_seed(1)
    for component in pipe.components.values():
        if not isinstance(component, torch.nn.Module):
            continue
        for parameter in component.parameters():
            if float(parameter.detach().abs().sum()) == 0.0:
                parameter.data.normal_(0.0, 0.05, generator=generator)
