#!/usr/bin/env bash
# Puts the emoji families and name tables that the demo is drawn from into .tools/emoji/ (ignored by git).
set -euo pipefail
cd "$(dirname "$0")/.."

readonly HOME_DIR=.tools/emoji
readonly PACKAGES=(
  @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 @iconify-json/twemoji@1.2.5 @iconify-json/openmoji@1.2.29
  @iconify-json/emojione@1.2.3 @iconify-json/emojione-v1@1.2.3 @iconify-json/fxemoji@1.2.2 @iconify-json/fluent-emoji-flat@1.2.6
  unicode-emoji-json@0.9.0 emojilib@4.0.3
)

if [ "$(cat "$HOME_DIR/packages" 2>/dev/null)" = "${PACKAGES[*]}" ]; then
  echo "setup: the emoji families are in $HOME_DIR"
  exit 0
fi
command -v npm >/dev/null || { echo "setup: error: npm is needed to fetch the emoji families (Debian: apt-get install npm)" >&2; exit 1; }
mkdir -p "$HOME_DIR"
echo "setup: fetching ${#PACKAGES[@]} npm packages into $HOME_DIR …"
npm install --prefix "$HOME_DIR" --no-save --no-audit --no-fund --silent "${PACKAGES[@]}"
printf '%s' "${PACKAGES[*]}" > "$HOME_DIR/packages"
