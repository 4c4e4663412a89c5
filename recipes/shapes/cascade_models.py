"""The three networks of `shapes-cascade`, untrained, and the noise process that all its training shares.

A VQGAN (64 x 64 pictures to 16 x 16 x 4), stage B, which draws its latents from an 8 x 8 x 5 embedding, and stage C,
which draws the embedding from the prompt (Pernias et al. 2023). Both stages predict v and sample with DPM-Solver++,
which needs 4 and 10 steps where the pipeline's own ancestral scheduler needs about three times as many: the
price is a scheduler that the published model does not use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.models import StableCascadeUNet
from diffusers.models.unets.unet_stable_cascade import GlobalResponseNorm
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from recipes.shapes.cascade_layout import CHANNELS
from recipes.shapes.text import POOLED, clip_config

LATENT_CHANNELS = 4
"""The decoder pipeline of diffusers knows no other number."""
LATENT_SIZE = 16


def build_vqgan() -> PaellaVQModel:
    """An untrained fourfold autoencoder. Its codebook stays as it is: the pipeline decodes without quantising."""
    model = PaellaVQModel(
        levels=2,
        bottleneck_blocks=3,
        embed_dim=48,
        latent_channels=LATENT_CHANNELS,
        num_vq_embeddings=16,
        scale_factor=1.0,
    )
    norm = model.down_blocks[-1][1]
    norm.weight.requires_grad_(False)  # latents keep standard deviation 1: what the noise schedule expects
    norm.bias.requires_grad_(False)
    model.vquantizer.requires_grad_(False)
    return model


def decoding_half(vqgan: PaellaVQModel) -> nn.ModuleList:
    """What turns latents into pixels; shares its weights with the model."""
    return nn.ModuleList([vqgan.up_blocks, vqgan.out_block])


def _initialise(unet: StableCascadeUNet) -> StableCascadeUNet:
    """Starts every residual branch small and the output at 0, as the paper's code does; diffusers leaves defaults.

    The embedding's bias is drawn from N(0, 1): a layer norm follows, which would otherwise hide the magnitude of
    the input.
    """
    nn.init.normal_(unet.embedding[1].bias)
    nn.init.zeros_(unet.clf[1].weight)
    nn.init.zeros_(unet.clf[1].bias)
    for name, module in unet.named_modules():
        if name.endswith("mapper") and isinstance(module, nn.Linear) and "clip" not in name:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


def _response_norm(self: GlobalResponseNorm, x: Tensor) -> Tensor:
    total = (
        x.square().sum(dim=(1, 2), keepdim=True) + 1e-12
    ).sqrt()  # a silent channel: sqrt has no slope at 0
    return torch.addcmul(self.beta, x, self.gamma * (total / (total.mean(dim=-1, keepdim=True) + 1e-6)) + 1.0)


@contextmanager
def faster_norm() -> Iterator[None]:
    """The same response norm by other kernels: `torch.norm` over two dimensions is a quarter of a training step."""
    kept = GlobalResponseNorm.forward
    GlobalResponseNorm.forward = _response_norm
    try:
        yield
    finally:
        GlobalResponseNorm.forward = kept


def build_decoder() -> StableCascadeUNet:
    """Stage B, untrained: one level of 8 x 8 tokens of 2 x 2 latents, no attention, so no text either."""
    return _initialise(
        StableCascadeUNet(
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            patch_size=2,
            timestep_ratio_embedding_dim=32,
            conditioning_dim=8,
            block_out_channels=(80,),
            num_attention_heads=(-1,),
            down_num_layers_per_block=(3,),
            up_num_layers_per_block=(3,),
            down_blocks_repeat_mappers=(1,),
            up_blocks_repeat_mappers=(1,),
            block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock"),),
            clip_text_pooled_in_channels=POOLED,
            clip_seq=1,
            effnet_in_channels=CHANNELS,
            dropout=(0.0,),
            timestep_conditioning_type=(),
        )
    )


def build_prior() -> StableCascadeUNet:
    """Stage C, untrained: 4 x 4 tokens of 2 x 2 cells with attention to each other and to the prompt."""
    return _initialise(
        StableCascadeUNet(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            patch_size=2,
            timestep_ratio_embedding_dim=32,
            conditioning_dim=64,
            block_out_channels=(96,),
            num_attention_heads=(4,),
            down_num_layers_per_block=(3,),
            up_num_layers_per_block=(3,),
            down_blocks_repeat_mappers=(1,),
            up_blocks_repeat_mappers=(1,),
            block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),),
            clip_text_in_channels=POOLED,
            clip_text_pooled_in_channels=POOLED,
            clip_image_in_channels=1,
            clip_seq=1,
            dropout=(0.0,),
            timestep_conditioning_type=(),
        )
    )


class PriorWithText(nn.Module):
    """Stage C and its text encoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = build_prior()
        self.text_encoder = CLIPTextModelWithProjection(clip_config())
        for name, parameter in self.text_encoder.named_parameters():
            if "embedding" in name:
                nn.init.normal_(parameter, std=0.1)

    def forward(self, sample: Tensor, ratio: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Predicted v for embeddings [n, 5, 8, 8] at timestep ratios [n], conditioned as the pipeline does it."""
        text = self.text_encoder(ids, attention_mask=mask, output_hidden_states=True)
        found: Tensor = self.unet(
            sample,
            ratio,
            text.text_embeds.unsqueeze(1),
            clip_text=text.hidden_states[-1],
            clip_img=sample.new_zeros(len(sample), 1, 1),
            return_dict=False,
        )[0]
        return found


def build_scheduler() -> DPMSolverMultistepScheduler:
    """Second-order DPM-Solver++ on the cosine schedule with v-prediction."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )


class Diffusion:
    """The forward process and its loss, with the timestep ratios that the pipelines give to their networks."""

    def __init__(self) -> None:
        self.kept = build_scheduler().alphas_cumprod
        offset = 0.008
        least = math.cos(offset / (1 + offset) * math.pi / 2) ** 2
        self.ratio = ((self.kept.clamp(0, 1) * least) ** 0.5).acos() / (math.pi / 2) * (1 + offset) - offset

    def loss(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        clean: Tensor,
        generator: torch.Generator,
        skew: float,
    ) -> Tensor:
        """Mean squared error of v (Salimans & Ho 2022, section 4) at t = 1 - (1 - u)^skew with uniform u."""
        uniform = torch.rand(len(clean), generator=generator)
        steps = ((1.0 - (1.0 - uniform) ** skew) * len(self.kept)).long().clamp(max=len(self.kept) - 1)
        kept = self.kept[steps].view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        target = kept.sqrt() * noise - (1 - kept).sqrt() * clean
        return nn.functional.mse_loss(network(noisy, self.ratio[steps]), target)
