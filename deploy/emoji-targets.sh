#!/usr/bin/env bash
# Trains the demo's targets around its CLIP: a judge of drawings, a Stable Diffusion pipeline and a LLaVA. Epochs can be given for a trial:
# JUDGE_EPOCHS, AUTOENCODER_EPOCHS, UNET_EPOCHS, LLAVA_EPOCHS, and another folder for the results: OUT.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${OUT:-jobs/emoji/targets}
train() { HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.tools/ecosystem/site python3 "deploy/emoji-targets/$1.py" "${@:2}"; }
train judge "$out/judge" "${JUDGE_EPOCHS:-40}"
train llava jobs/emoji/model "$out/llava" "${LLAVA_EPOCHS:-16}"
train diffusion jobs/emoji/model "$out/judge" "$out/stable-diffusion" "${AUTOENCODER_EPOCHS:-30}" "${UNET_EPOCHS:-80}"
