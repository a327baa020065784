#!/usr/bin/env bash
# Puts what tests drive into .tools/ (ignored by git): moto's S3 server, in a Python environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly HOME_DIR=.tools/s3
readonly PACKAGES=("moto[server,s3]==5.1.15")

say() { printf 'setup: %s\n' "$*"; }

if [ "$(cat "$HOME_DIR/packages" 2>/dev/null)" = "${PACKAGES[*]}" ]; then
  say "the S3 server for tests is in $HOME_DIR"
  exit 0
fi
command -v python3 >/dev/null || { printf 'setup: error: python3 is needed (Debian: apt-get install python3 python3-pip)\n' >&2; exit 1; }
say "fetching an S3 server for tests …"
rm -rf "$HOME_DIR"
mkdir -p "$HOME_DIR"
# A folder of packages rather than a virtual environment: Debian's Python has pip more often than venv.
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-warn-conflicts --target "$HOME_DIR/site" "${PACKAGES[@]}"
printf '%s' "${PACKAGES[*]}" > "$HOME_DIR/packages"
say "the S3 server for tests is in $HOME_DIR"
