#!/usr/bin/env bash
# Trains what carries the demo's CLIP: a LLaVA and a diffusion pipeline; and a judge of drawings. What is trained already stays; a
# training that was stopped goes on from its last epoch.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly OUT=jobs/emoji/targets MODEL=jobs/emoji/model CHECKPOINTS=target/emoji/targets
export HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.tools/ecosystem/site
mkdir -p "$CHECKPOINTS"

trainer() { # FINISHED-FILE SCRIPT OPTIONS…
  if [ -f "$1" ]; then echo "targets: $1 is there"; else python3 "deploy/emoji-targets/$2.py" --train target/emoji/train.tar "${@:3}"; fi
}
held_out=(--held-out jobs/emoji/validation.tar jobs/emoji/test.tar)

trainer "$OUT/llava/accuracy.json" llava "${held_out[@]}" --model "$MODEL" --out "$OUT/llava" --checkpoint "$CHECKPOINTS/llava.pt"
trainer "$OUT/judge/accuracy.json" judge "${held_out[@]}" --out "$OUT/judge" --checkpoint "$CHECKPOINTS/judge.pt"
trainer "$OUT/pipeline/model_index.json" diffusion --model "$MODEL" --out "$OUT/pipeline" --checkpoints "$CHECKPOINTS"
