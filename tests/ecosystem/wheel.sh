#!/usr/bin/env bash
# Installs the wheel into fresh virtual environments as a user would, and uses its programs and its module.
#
#   wheel.sh SITE     SITE: a site-packages folder that has torch
#
# Nothing is downloaded but the tools that build the wheel: SITE's packages are linked into the first environment's site-packages,
# where pip would have put them, and are on the path of the second, as a system's packages would be.
set -euo pipefail
cd "$(dirname "$0")/../.."

site=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make --no-print-directory wheel
wheel=$(echo target/wheel/lethe-*.whl)
environment() { python3 -m venv "$work/$1" && echo "$work/$1"/lib/python3*/site-packages; }
pip() { "$work/$1/bin/pip" install --quiet --disable-pip-version-check --no-index "${@:2}"; }
die() { printf 'ecosystem: error: %s\n' "$*" >&2; exit 1; }

packages=$(environment beside)
for package in "$site"/*; do [ -e "$packages/$(basename "$package")" ] || ln -s "$package" "$packages/"; done
pip beside "$wheel"
"$work/beside/bin/lethe" doctor
"$packages/lethe/bin/lethe" --version >/dev/null || die "the program does not find torch beside itself"

packages=$(environment elsewhere)
echo "$site" > "$packages/torch.pth"
pip elsewhere "$wheel"
"$work/elsewhere/bin/lethe" doctor >/dev/null || die "the program does not find torch elsewhere on the path"
"$work/elsewhere/bin/lethe-worker" --version >/dev/null

environment without >/dev/null
pip without --no-deps "$wheel"
code=0; said=$("$work/without/bin/lethe" --version 2>&1) || code=$?
[ "$code" = 5 ] && [[ $said == *"pip install torch==2.11.0"* ]] || die "without torch, lethe ends with $code and says: $said"

# The demo's eight concepts on a third of the retained pairs.
mkdir "$work/demo"
cp -rs "$PWD/jobs/emoji/." "$work/demo/"
rm -rf "$work/demo/model" "$work/demo/store" "$work/demo"/retain-0000[12].tar
ln -s "$PWD/tests/model" "$work/demo/model"
"$work/beside/bin/python" tests/ecosystem/check_module.py "$work/demo" docs/how-to/python.md
