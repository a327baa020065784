#!/usr/bin/env bash
# Fetches the Python peers (torch, transformers) into .tools/ecosystem; does nothing where they are.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly HOME_DIR=.tools/ecosystem
readonly REQUIREMENTS=tests/ecosystem/requirements.txt
readonly STAMP="$HOME_DIR/requirements.txt"

say() { printf 'ecosystem: %s\n' "$*" >&2; }

if cmp -s "$REQUIREMENTS" "$STAMP"; then
  say "the Python peers are in $HOME_DIR"
else
  command -v python3 >/dev/null || { echo "ecosystem: error: python3 is needed (Debian: apt-get install python3 python3-pip)" >&2; exit 1; }
  say "fetching the Python peers into $HOME_DIR (some gigabytes) …"
  rm -rf "$HOME_DIR" && mkdir -p "$HOME_DIR"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-warn-conflicts --no-compile \
    --target "$HOME_DIR/site" -r "$REQUIREMENTS"
  cp "$REQUIREMENTS" "$STAMP"
fi
