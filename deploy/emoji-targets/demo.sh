#!/usr/bin/env bash
# Removes a hundred concepts from the demo's diffusion pipeline and from its LLaVA, measures what is still drawn and named, prints a table
# and makes a page of pictures.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly STORE=jobs/emoji/store
export HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$PWD/.tools/ecosystem/site"
result=$(mktemp -d)
trap 'rm -rf "$result"' EXIT

for target in pipeline:drawn llava:named; do
  manifest=jobs/emoji/${target%:*}-100.toml probe=jobs/emoji/targets/${target#*:}.toml
  target/release/lethe run "$manifest" --store "$STORE" --json > "$result/run.json"
  release=$(python3 -c 'import json, sys; print(json.loads(open(sys.argv[1]).read().splitlines()[-1])["release"])' "$result/run.json")
  target/release/lethe evaluate "$release" --store "$STORE" --probe "$probe" --json > "$result/${target#*:}.json"
done
python3 deploy/emoji-targets/page.py "$result/drawn.json" "$result/named.json" "$STORE/demo-targets.html"
