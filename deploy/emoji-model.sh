#!/usr/bin/env bash
# Trains the models of the demo, in stages that start where the one before ended. The fourth writes tests/model, with 768 hidden units in
# each MLP; the fifth widens it, and the last writes jobs/emoji/model.
set -euo pipefail
cd "$(dirname "$0")/.."

stage() { # NAME FROM TRAINER-OPTIONS…
  local out=$1 from=$2
  shift 2
  mkdir -p "$out"
  case $out in */model) ;; *) cp tests/model/*.json "$out/" ;; esac
  target/release/emoji-train --out "$out" ${from:+--from "$from"} "$@"
}

stages=target/emoji/stages
stage $stages/1 ""        --epochs 160 --stop-after 115
stage $stages/2 $stages/1 --epochs 45 --learning-rate 3e-4 --augment 0.35 --patch-drop 0
stage $stages/3 $stages/2 --epochs 14 --learning-rate 2e-4 --augment 0.1 --patch-drop 0
stage tests/model $stages/3 --epochs 14 --learning-rate 2e-4 --augment 0 --patch-drop 0

wide=(--text-hidden 3072 --vision-hidden 2048)
stage $stages/5 tests/model "${wide[@]}" --epochs 14 --learning-rate 3e-4 --augment 0.35 --patch-drop 0.5 --whole-from 0.7
stage $stages/6 $stages/5 "${wide[@]}" --epochs 2 --learning-rate 2e-4 --augment 0.1 --patch-drop 0
stage jobs/emoji/model $stages/6 "${wide[@]}" --epochs 4 --learning-rate 2e-4 --augment 0 --patch-drop 0 --half
