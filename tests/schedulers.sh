#!/usr/bin/env bash
# Executes deploy/airflow and deploy/ray with the real Airflow and Ray, which it fetches into .tools/schedulers (400 MB; ignored by
# git). `make test-deploy` does the same with stand-ins. Needs the wheel, and what tests/setup.sh fetches: `make test-schedulers`.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly TOOLS="$PWD/.tools/schedulers"
readonly REQUIREMENTS=tests/deploy/schedulers.txt
readonly NATS_SERVER="$PWD/.tools/nats/site/bin/nats-server"

step() { printf 'schedulers: %s (after %d s)\n' "$*" "$SECONDS"; }
[ -x "$NATS_SERVER" ] || tests/setup.sh nats
if ! cmp -s "$REQUIREMENTS" "$TOOLS/requirements.txt"; then
  step "fetching Airflow and Ray"
  rm -rf "$TOOLS" && mkdir -p "$TOOLS"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-warn-conflicts --no-compile --target "$TOOLS/site" -r "$REQUIREMENTS"
  cp "$REQUIREMENTS" "$TOOLS/requirements.txt"
fi

# shellcheck source=tests/processes.sh
source tests/processes.sh
start() { "$@" > "$work/${1##*/}.log" 2>&1 & processes+=($!); }

python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-index --no-deps --target "$work/module" target/wheel/lethe-*.whl
ln -s "$PWD/.libtorch/full" "$work/module/torch"
export PYTHONPATH="$work/module:$TOOLS/site" AIRFLOW_HOME="$work/airflow" RAY_USAGE_STATS_ENABLED=0 LETHE_CACHE="$work/cache"
mkdir "$work/demo"
cp -rs "$PWD/jobs/emoji/." "$work/demo/"
rm -rf "$work/demo/model" "$work/demo/store" "$work/demo"/retain-0000[12].tar
ln -s "$PWD/tests/model" "$work/demo/model"

step "Airflow"
python3 tests/deploy/schedulers.py dags
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export LETHE_NATS="nats://127.0.0.1:$port"
start "$NATS_SERVER" -js -a 127.0.0.1 -p "$port" -sd "$work/streams"
start target/release/lethe serve --store "$work/store" --http 0
start target/release/lethe-worker --store "$work/store" --device cpu
python3 tests/deploy/schedulers.py airflow "$work/demo/small.toml" "$work/store" || { tail -n 20 "$work"/*.log >&2; exit 1; }

step "Ray"
python3 tests/deploy/schedulers.py ray "$work/demo/small.toml" "$work/store"
step "done"
