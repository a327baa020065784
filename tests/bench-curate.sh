#!/usr/bin/env bash
# Curates synthetic pairs and reads the same files with tar, by turns; wall time, processor time and peak memory of each.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PAIRS=${PAIRS:-200000} CONCEPTS=${CONCEPTS:-500} SHARDS=${SHARDS:-20} ROUNDS=${ROUNDS:-3}
work=$(mktemp -d "${TMPDIR:-/tmp}/lethe-curate.XXXX")
trap 'rm -rf "$work"' EXIT
target/release/synthetic-pairs "$work" "$PAIRS" "$CONCEPTS" "$SHARDS"
printf '%s pairs, %s concepts, %s shards, %s\n' "$PAIRS" "$CONCEPTS" "$SHARDS" "$(du -ch "$work"/*.tar | tail -n 1 | cut -f 1)"
sync                          # Nobody waits for the disk to take what was just made …
cat "$work"/*.tar > /dev/null # … and every reader finds the files in memory.

measure() { # $1: what it is; then the command
  python3 - "$@" <<'PY'
import resource, subprocess, sys, time
begun = time.monotonic()
subprocess.run(sys.argv[2:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
wall, used = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"  {sys.argv[1]:<34}{wall:8.2f} s wall {used.ru_utime:7.2f} s user {used.ru_stime:7.2f} s system {used.ru_maxrss / 1024:7.0f} MB")
PY
}
# Into folders of the same name, which the manifest takes over.
curate() { # $1: what it is; $2: where its folder goes; then more options
  measure "$1" target/release/lethe curate "$work/concepts.csv" --pairs "$work/pairs-*.tar" --classes "$work/classes.txt" --into "$work/$2/curated" "${@:3}"
}
measure 'lethe --version' target/release/lethe --version
for round in $(seq "$ROUNDS"); do
  sync
  # shellcheck disable=SC2016
  measure 'tar -xO, one after another' bash -c 'for shard in "$0"/*.tar; do tar -xO -f "$shard" > /dev/null; done' "$work"
  curate 'lethe curate, one worker' "one-$round" --workers 1
  curate 'lethe curate, one per core' "all-$round"
  diff -r "$work/one-$round" "$work/all-$round"
  curate 'one worker, keeps next to nothing' "pass-$round" --workers 1 --forget-pairs 1 --retain-pairs 128 --validation-pairs 0
  rm -rf "$work/one-$round" "$work/all-$round" "$work/pass-$round"
done
curate 'every pair that may stay' whole --workers 1 --retain-pairs 1000000
