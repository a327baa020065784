#!/usr/bin/env bash
# Trains the demo's model, in four stages that start where the one before ended; the last writes jobs/emoji/model.
set -euo pipefail
cd "$(dirname "$0")/.."

stage() { # NAME FROM TRAINER-OPTIONS…
  local out=$1 from=$2
  shift 2
  mkdir -p "$out"
  [ "$out" = jobs/emoji/model ] || cp jobs/emoji/model/*.json "$out/"
  target/release/emoji-train --out "$out" ${from:+--from "$from"} "$@"
}

stages=target/emoji/stages
stage $stages/1 ""        --epochs 160 --stop-after 115
stage $stages/2 $stages/1 --epochs 45 --learning-rate 3e-4 --augment 0.35 --patch-drop 0
stage $stages/3 $stages/2 --epochs 14 --learning-rate 2e-4 --augment 0.1 --patch-drop 0
stage jobs/emoji/model $stages/3 --epochs 14 --learning-rate 2e-4 --augment 0 --patch-drop 0
