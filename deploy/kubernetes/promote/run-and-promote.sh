#!/bin/sh
# Executes a run, and points a channel to its release: run-and-promote.sh MANIFEST CHANNEL
#
# LETHE_NATS and LETHE_STORE name queue and store. The exit code is that of the command that failed; when a required concept is
# not removed (3) or a gate is not met (4), the release is stored and no channel moves. On success, /tmp/release names the release.
set -eu

lethe run "$1" --nats "$LETHE_NATS" --store "$LETHE_STORE" --json > /tmp/run.json &
run=$!
# A pod that has to go is told so by SIGTERM: the run stops at a safe point, and ends with 130.
trap 'kill -TERM "$run"' INT TERM
code=0
wait "$run" || code=$?
# The signal ended the wait, not the run.
while kill -0 "$run" 2>/dev/null; do code=0; wait "$run" || code=$?; done
[ "$code" = 0 ] || exit "$code"

# The object begins with run, release and number; a release's folder is …/releases/NAME/DIGEST.
release=$(sed -nE 's|^\{"run":"[^"]*","release":"[^"]*/releases/([^/"]+)/[0-9a-f]+","number":([0-9]+),.*$|\1:\2|p' /tmp/run.json)
[ -n "$release" ] || { echo "error: lethe run printed no release; see its output in /tmp/run.json" >&2; exit 5; }
lethe release promote "$release" "$2" --store "$LETHE_STORE"
echo "$release" > /tmp/release
