#!/usr/bin/env python3
"""Trains a Stable Diffusion pipeline that draws the demo's classes, around the text tower of a CLIP, which stays as it is.

usage: diffusion.py CLIP JUDGE OUT [AUTOENCODER_EPOCHS UNET_EPOCHS]

CLIP is the model's folder and JUDGE the folder of `judge.py`. Writes OUT as diffusers does, in float16, and OUT/drawn.json: for every
class, the rank that the judge gives it on drawings of its name.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextModel

import judge
from drawings import SIDE, augmented, autocast, class_names, fit, read

# Sides of a picture in latents.
LATENT = SIDE // 4
# How often a text is left out, for guidance without a classifier.
UNCONDITIONAL = 0.1
GUIDANCE, STEPS, DRAWINGS = 3.0, 20, 2


def train_autoencoder(training, epochs):
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4, layers_per_block=1, norm_num_groups=8, sample_size=SIDE,
    )  # fmt: skip

    def loss(rows):
        pictures = 2 * augmented(training.pixels[rows], 0.3) - 1
        with autocast():
            posterior = vae.encode(pictures).latent_dist
            found = vae.decode(posterior.sample()).sample.float()
        gradients = lambda x: (x.diff(dim=2), x.diff(dim=3))
        edges = sum((a - b).abs().mean() for a, b in zip(gradients(found), gradients(pictures)))
        return (found - pictures).abs().mean() + edges + 1e-5 * posterior.kl().mean() / LATENT**2

    fit("autoencoder", vae, loss, len(training), epochs, 32, 1e-3, weight_decay=0.0)
    with torch.no_grad():
        latents = torch.cat([vae.encode(2 * part.float() / 255 - 1).latent_dist.mean for part in training.pixels.split(128)])
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    return vae, vae.config.scaling_factor * latents


@torch.no_grad()
def embed(texts, tokenizer, encoder):
    """The hidden states `[n, tokens, width]` that the pipeline gives the U-Net."""
    found = []
    for start in range(0, len(texts), 256):
        part = texts[start : start + 256]
        ids = tokenizer(part, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt").input_ids
        found.append(encoder(ids)[0])
    return torch.cat(found)


def train_unet(training, latents, tokenizer, encoder, scheduler, epochs):
    unet = UNet2DConditionModel(
        sample_size=LATENT, block_out_channels=(96, 192, 256), layers_per_block=1, cross_attention_dim=encoder.config.hidden_size,
        attention_head_dim=8, norm_num_groups=16, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    texts = sorted({caption for captions in training.captions for caption in captions} | {""})
    place = {text: i for i, text in enumerate(texts)}
    hidden = embed(texts, tokenizer, encoder)
    captions = [[place[text] for text in captions] for captions in training.captions]
    signal = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)

    def loss(rows):
        # Half of the texts are the plain name, which comes first.
        form = lambda forms: forms[0] if torch.rand(()) < 0.5 else forms[int(torch.randint(len(forms), ()))]
        chosen = torch.tensor([place[""] if torch.rand(()) < UNCONDITIONAL else form(captions[row]) for row in rows.tolist()])
        clean, noise = latents[rows], torch.randn(len(rows), 4, LATENT, LATENT)
        times = torch.randint(scheduler.config.num_train_timesteps, (len(rows),))
        noised, wanted = scheduler.add_noise(clean, noise, times), scheduler.get_velocity(clean, noise, times)
        with autocast():
            found = unet(noised, times, hidden[chosen]).sample.float()
        # Min-SNR weights (arXiv 2303.09556) for a velocity.
        weight = signal[times].clamp(max=5) / (signal[times] + 1)
        return (weight * (found - wanted).square().mean((1, 2, 3))).mean() / weight.mean()

    return fit("unet", unet, loss, len(training), epochs, 64, 6e-4, decay=0.9995)


@torch.no_grad()
def draw(pipeline, prompts, seed=0):
    """Pictures in 0 to 1 of these prompts `[n, 3, 48, 48]`."""
    found = []
    for start in range(0, len(prompts), 64):
        part = prompts[start : start + 64]
        generator = torch.Generator().manual_seed(seed + start)
        found.append(pipeline(part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=SIDE, width=SIDE, output_type="pt", generator=generator).images)
    return torch.cat(found)


@torch.no_grad()
def ranks(pipeline, critic, names):
    """The ranks of each name on drawings of it, by the judge; 0 is first."""
    found = [[] for _ in names]
    for drawing in range(DRAWINGS):
        scores = critic(draw(pipeline, names, 1000 * drawing))
        own = scores.diagonal()[:, None]
        for ranks, rank in zip(found, (scores > own).sum(1).tolist()):
            ranks.append(rank)
    return dict(zip(names, found))


def main():
    clip, critic, out = (Path(argument) for argument in sys.argv[1:4])
    epochs = [int(number) for number in sys.argv[4:6]] or [30, 80]
    names = class_names()
    training = read(names)[0]
    tokenizer, encoder = AutoTokenizer.from_pretrained(clip), CLIPTextModel.from_pretrained(clip).float().eval()
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip
    vae, latents = train_autoencoder(training, epochs[0])
    unet = train_unet(training, latents, tokenizer, encoder, scheduler, epochs[1])
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    drawn = ranks(pipeline, judge.load(critic)[0], names)
    share = lambda k: 100 * sum(min(ranks) < k for ranks in drawn.values()) / len(drawn)
    print(f"pipeline: the judge ranks {share(1):.1f} % of all names first on one of {DRAWINGS} drawings, and {share(5):.1f} % in the first five", flush=True)
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    (out / "drawn.json").write_text(json.dumps(drawn, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
