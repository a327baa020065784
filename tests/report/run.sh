#!/usr/bin/env bash
# Removes eight concepts from the demo model, by least squares and by preconditioned edits, and uses the reports in headless Chromium, as
# a reader would.
#
# Needs target/release/lethe: `make test-report` sees to it. Installs Debian's chromium where there is none.
set -euo pipefail
cd "$(dirname "$0")/../.."

die() { printf 'report: error: %s\n' "$*" >&2; exit 1; }

command -v python3 >/dev/null || die "python3 is needed (Debian: apt-get install python3)"
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
  command -v apt-get >/dev/null || die "chromium is needed; this script installs it on Debian only"
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "run as root once, or: apt-get install chromium"
    as_root=(sudo)
  fi
  echo "report: installing Debian's chromium …"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "report: removing eight concepts …"
cp -r jobs/emoji "$work/job"
rm "$work"/job/retain-0000[12].tar
target/release/lethe run "$work/job/small.toml" --store "$work/store" --json > "$work/run.json"
field() { python3 -c 'import json, sys; print(json.loads(open(sys.argv[1]).read().splitlines()[-1])[sys.argv[2]])' "$work/run.json" "$1"; }
release=$(field release)

# What is in the release is what the command writes; of a run it has times too.
target/release/lethe report "$release" --output "$work/again.html" > /dev/null
cmp "$release/report.html" "$work/again.html" || die "lethe report does not write what is in the release"
target/release/lethe report "$(field run)" --store "$work/store" --output "$work/timed.html" > /dev/null
grep -q 'id="times"' "$work/timed.html" || die "the report of a run lacks its times"
if grep -q 'id="times"' "$release/report.html"; then die "the report in a release depends on how long it took"; fi

python3 -B tests/report/check.py "$work/timed.html" worst edited

echo "report: removing them by preconditioned edits …"
printf '\n[composition]\nmethod = "preconditioned"\n' >> "$work/job/small.toml"
target/release/lethe run "$work/job/small.toml" --store "$work/store" --json > "$work/run.json"
target/release/lethe report "$(field run)" --store "$work/store" --output "$work/timed.html" > /dev/null
python3 -B tests/report/check.py "$work/timed.html"
