#!/usr/bin/env bash
# Lethe against a PyTorch program of the authors' procedure, on one core each: the same edits? at what price?
# Options of bench_peer.py can be given: --concepts 8 --check 8 --evaluations 0
set -euo pipefail
cd "$(dirname "$0")/../.."

tests/ecosystem/peers.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
PYTHONPATH=.tools/ecosystem/site:tests/ecosystem:tests/bench:tests/reference \
  python3 tests/reference/bench_peer.py target/release/lethe jobs/emoji/small.toml "$work" "$@"
