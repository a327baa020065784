#!/usr/bin/env bash
# Makes coordinator/src/present/report/charts.min.js, the chart library in reports, of pinned npm packages. The result is committed, so that
# building Lethe needs no npm; run this to change the version or the parts in report-charts.js. Needs node and npm.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PACKAGES=(echarts@6.1.0 zrender@6.1.0 tslib@2.3.0 esbuild@0.28.2)
readonly TARGET=coordinator/src/present/report/charts.min.js
readonly MOST=600000

command -v npm >/dev/null || { echo "report-charts: error: npm is needed (Debian: apt-get install npm)" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "report-charts: fetching ${PACKAGES[*]} …"
npm install --prefix "$work" --no-save --no-audit --no-fund --silent "${PACKAGES[@]}"
cp deploy/report-charts.js "$work/entry.js"
{
  echo "/*!"
  echo "Parts of Apache ECharts 6.1.0, bundled and minified; Apache License 2.0, http://www.apache.org/licenses/LICENSE-2.0"
  cat "$work/node_modules/echarts/NOTICE"
  printf '\n\nwith zrender:\n'
  cat "$work/node_modules/zrender/LICENSE"
  printf '\nand tslib:\n'
  sed 's/\r$//' "$work/node_modules/tslib/LICENSE.txt"
  printf '\n*/\n'
} > "$work/banner.txt"
(cd "$work" && npx --no-install esbuild entry.js --bundle --minify --format=iife --target=es2020 --legal-comments=none \
  --define:process.env.NODE_ENV='"production"' --define:__DEV__=false --log-level=warning --outfile=bundle.js)
cat "$work/banner.txt" "$work/bundle.js" > "$work/charts.min.js"
if grep -qi '</script\|<!--' "$work/charts.min.js"; then
  echo "report-charts: error: the bundle would end the script it stands in" >&2; exit 1
fi
size=$(wc -c < "$work/charts.min.js")
[ "$size" -le "$MOST" ] || { echo "report-charts: error: $size bytes are more than $MOST" >&2; exit 1; }
cp "$work/charts.min.js" "$TARGET"
echo "report-charts: $TARGET, $size bytes"
