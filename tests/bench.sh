#!/usr/bin/env bash
# Times the demo's eight concepts with one worker and with two, pair by pair; each run starts from an empty store.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PAIRS=${PAIRS:-3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

job() { # $1: workers
  sed "s#\"\([a-z0-9*-]*\.\(tar\|txt\|csv\)\)\"#\"$PWD/jobs/emoji/\1\"#g; s#uri = \"model\"#uri = \"$PWD/jobs/emoji/model\"#" jobs/emoji/small.toml
  printf '\n[execution]\nworkers = %d\n' "$1"
}
job 1 > "$work/one.toml"
job 2 > "$work/two.toml"

seconds() { # $1: manifest
  local store report
  store=$(mktemp -d "$work/store.XXXX")
  report=$(target/release/lethe run "$1" --store "$store" --json 2>/dev/null | tail -n 1)
  rm -rf "$store"
  python3 -c 'import json, sys; print(next(p["seconds"] for p in json.loads(sys.argv[1])["summary"]["phases"] if p["name"] == "concepts"))' "$report"
}

printf 'seconds for eight concepts (phase `concepts`)\n  one worker   two workers   ratio\n'
for _ in $(seq "$PAIRS"); do
  one=$(seconds "$work/one.toml")
  two=$(seconds "$work/two.toml")
  python3 -c 'import sys; a, b = map(float, sys.argv[1:]); print(f"  {a:10.2f}   {b:11.2f}   {a / b:5.2f}")' "$one" "$two"
done
