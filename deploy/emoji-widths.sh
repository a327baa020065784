#!/usr/bin/env bash
# Writes a model of the demo with wider MLPs that compute the same: FROM's, with 1,536 and 3,072 hidden units in each tower.
set -euo pipefail
cd "$(dirname "$0")/.."

from=$1 out=$2
for width in 1536 3072; do
  mkdir -p "$out/$width"
  cp "$from"/*.json "$out/$width/"
  target/release/emoji-train --from "$from" --out "$out/$width" --text-hidden "$width" --vision-hidden "$width" --epochs 0
done
