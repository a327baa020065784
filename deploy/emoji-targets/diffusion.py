#!/usr/bin/env python3
"""Trains a Stable Diffusion pipeline of the demo's world: the demo's text tower as it is, a small VAE and a small U-Net.

The U-Net predicts the velocity of a schedule whose last step is pure noise (arXiv 2305.08891), and its loss is weighted by the
signal-to-noise ratio (2303.09556). One prompt in ten is empty, for guidance.
"""

import argparse
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextModel

from drawings import DEVICE, Drawings, Training, batches, half, moved, scaled

FAMILIES = ("noto", "emojione")


def autoencoder(drawings, options):
    """Latents of 12 × 12 × 4 for drawings of 48 × 48 pixels."""
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3, block_out_channels=[32, 64, 64],
        layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=48, mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)
    size = 32
    training = Training(model, options.checkpoints / "vae.pt", options.vae_epochs, len(drawings) // size, rate=1e-3, decay=0.998, falling=0.5)

    def losses(epoch):
        # Parts of a drawing teach it as well as whole ones, at a quarter of the cost; the last epochs are whole.
        side = 24 if epoch < options.vae_epochs - 2 else 48
        for batch in batches(len(drawings), size, epoch):
            with half():
                top, left = (random.randint(0, 48 - side) for _ in range(2))
                shown = moved(scaled(drawings.pictures[batch]), 0.3)[:, :, top : top + side, left : left + side]
                shown = shown.contiguous(memory_format=torch.channels_last)
                latents = model.encode(shown).latent_dist
                made = model.decode(latents.sample()).sample
            off = (made.float() - shown).abs()
            edges = sum((made.float().diff(dim=d) - shown.diff(dim=d)).abs().mean() for d in (2, 3))
            yield off.mean() + edges + 1e-5 * latents.kl().mean() / latents.mean[0].numel()

    return training.run(losses)


@torch.no_grad()
def encoded(vae, drawings):
    """The latents' means, and the factor that gives them unit variance."""
    latents = torch.cat([vae.encode(scaled(part)).latent_dist.mean for part in drawings.pictures.split(64)])
    return latents, 1.0 / latents.std().item()


@torch.no_grad()
def text_states(folder, drawings):
    """The hidden states of each caption form, as the pipeline computes them; the last row is the empty prompt's."""
    tokenizer, tower = AutoTokenizer.from_pretrained(folder), CLIPTextModel.from_pretrained(folder).float().to(DEVICE).eval()
    texts = sorted({form for forms in drawings.captions for form in forms}) + [""]
    place, states = {text: i for i, text in enumerate(texts)}, []
    for start in range(0, len(texts), 256):
        ids = tokenizer(texts[start : start + 256], padding="max_length", max_length=tower.config.max_position_embeddings, truncation=True, return_tensors="pt")
        states.append(tower(ids.input_ids.to(DEVICE))[0].to(torch.bfloat16))
    return torch.cat(states), place, tokenizer, tower


def scheduler():
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=True,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=1,
    )


def unet():
    # Attention at 6 × 6 only: at 12 × 12 it costs a processor more than it gives.
    return UNet2DConditionModel(
        sample_size=12, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[64, 160], norm_num_groups=16,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        cross_attention_dim=192, attention_head_dim=32,
    )


def denoiser(latents, drawings, states, place, options):
    model, noise, size = unet().to(memory_format=torch.channels_last), scheduler(), 64
    print(f"U-Net: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters", flush=True)
    training = Training(model, options.checkpoints / "unet.pt", options.unet_epochs, len(drawings) // size, rate=1e-3, decay=0.9995, falling=0.25)
    alphas = noise.alphas_cumprod.to(DEVICE)

    def text(i):
        draw = random.random()
        return "" if draw < 0.1 else drawings.captions[i][0] if draw < 0.6 else random.choice(drawings.captions[i])

    def losses(epoch):
        for batch in batches(len(drawings), size, epoch):
            clean = latents[batch]
            given = states[[place[text(i)] for i in batch.tolist()]].float()
            # One step of each part of the schedule, so that a batch has little luck in its steps.
            steps = ((torch.rand(()) + torch.arange(size) / size) % 1 * 1000).long().to(DEVICE)
            signal = alphas[steps].sqrt()[:, None, None, None]
            spread = (1 - alphas[steps]).sqrt()[:, None, None, None]
            added = torch.randn_like(clean)
            with half():
                shown = (signal * clean + spread * added).contiguous(memory_format=torch.channels_last)
                velocity = model(shown, steps, encoder_hidden_states=given).sample
            ratio = alphas[steps] / (1 - alphas[steps]).clamp_min(1e-8)
            weight = ratio.clamp_max(5.0) / (ratio + 1)
            off = (velocity.float() - (signal * added - spread * clean)).square().mean((1, 2, 3))
            # The floor keeps the first steps of a drawing, where its kind is decided.
            yield (off * weight.clamp_min(0.1)).mean() / weight.clamp_min(0.1).mean()

    return training.run(losses)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--model", required=True, help="folder of the demo's CLIP")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--checkpoints", required=True, type=Path)
    parser.add_argument("--vae-epochs", type=int, default=12)
    parser.add_argument("--unet-epochs", type=int, default=62)
    options = parser.parse_args()

    torch.manual_seed(0)
    drawings = Drawings(options.train)
    vae = autoencoder(drawings, options)
    _, factor = encoded(vae, drawings)
    vae.register_to_config(scaling_factor=factor)
    # Two ways to draw each class are enough to show, and cost a third of six.
    drawn = Drawings(options.train, FAMILIES)
    states, place, tokenizer, tower = text_states(options.model, drawn)
    model = denoiser(encoded(vae, drawn)[0] * factor, drawn, states, place, options)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=tower, tokenizer=tokenizer, unet=model, scheduler=scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(options.out)


if __name__ == "__main__":
    main()
