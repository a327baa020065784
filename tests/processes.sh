# Sourced by scripts that start processes: a folder $work, and an end to both with the script.
# shellcheck shell=bash
work=$(mktemp -d)
processes=()
cleanup() {
  local process
  for process in "${processes[@]}"; do kill -TERM "$process" 2>/dev/null || true; done
  for process in "${processes[@]}"; do wait "$process" 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
