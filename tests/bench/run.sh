#!/usr/bin/env bash
# Times the demo. `workers`: one worker against two, on as many cores. `growth`: what a removal costs as data and model grow. `gpu`: what a
# GPU does at real sizes.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly WHAT=${1:?workers, growth or gpu}
shift
case "$WHAT" in
  workers) manifest=jobs/emoji/remove-100.toml ;;
  growth) manifest=jobs/emoji/remove-100.toml; tests/ecosystem/peers.sh ;;
  gpu) manifest=; tests/ecosystem/peers.sh ;;
  *) echo "bench: error: \`$WHAT\` is neither workers nor growth nor gpu" >&2; exit 2 ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.tools/ecosystem/site:tests/ecosystem:tests/reference \
  python3 "tests/bench/$WHAT.py" target/release/lethe ${manifest:+"$manifest"} "$work" "$@"
