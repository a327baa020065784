#!/usr/bin/env bash
# Builds the CPU image of deploy/Dockerfile with buildah, without a container runtime or a registry, and executes a run in it.
#
# The base is what debootstrap makes of this machine's Debian mirror, kept in .tools/container. The programs are those in
# target/release: the stage that compiles them is not built. Needs root and some 6 GB in $TMPDIR; on Debian, installs buildah and
# debootstrap where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

readonly BASE="$PWD/.tools/container/base"
readonly SUITE=bookworm

step() { printf 'container: %s (after %d s)\n' "$*" "$SECONDS"; }
die() { printf 'container: error: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "root is needed, to change the root folder: sudo tests/container.sh"
if ! command -v buildah >/dev/null || ! command -v debootstrap >/dev/null; then
  command -v apt-get >/dev/null || die "buildah and debootstrap are needed; this script installs them on Debian only"
  step "installing buildah and debootstrap"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends buildah debootstrap >/dev/null
fi
for program in lethe lethe-worker; do [ -x "target/release/$program" ] || die "target/release/$program is missing: cargo build --release --locked"; done

if ! [ -e "$BASE/etc/debian_version" ]; then
  step "making a base"
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | grep -E '^https?://' | head -n 1)
  rm -rf "$BASE" "$BASE.new" && mkdir -p "$BASE.new"
  debootstrap --variant=minbase --include=ca-certificates "$SUITE" "$BASE.new" "$mirror" > "$BASE.log" 2>&1 || { tail -n 20 "$BASE.log" >&2; die "debootstrap failed"; }
  mv "$BASE.new" "$BASE"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build() { buildah --root "$work/images" --runroot "$work/run" --storage-driver vfs "$@"; }
# image NAME FOLDER PATH: an image of one layer, with this folder as its path.
image() {
  local container
  container=$(build from scratch)
  build add --quiet "$container" "$2" "$3" >/dev/null
  build commit --quiet --rm "$container" "localhost/$1" >/dev/null
}

step "images of the base and the programs"
deploy/install.sh "$work/prefix" >/dev/null
image base "$BASE" /
image programs "$work/prefix" /opt/lethe
rm -rf "$work/prefix"

step "building deploy/Dockerfile"
build bud --quiet --isolation chroot --file deploy/Dockerfile --tag localhost/lethe \
  --build-arg DEBIAN=localhost/base --build-arg PROGRAMS=localhost/programs . > "$work/build.log" 2>&1 || { tail -n 30 "$work/build.log" >&2; die "the image was not built"; }

step "running it"
container=$(build from localhost/lethe)
inside() { build run --isolation chroot --volume "$PWD/jobs/emoji:/data:ro" "$container" -- "$@"; }
[ "$(inside id -u)" = 10001 ] || die "programs run as $(inside id -u), not 10001"
inside lethe doctor
inside lethe-worker --version
step "the demo in it, and beside it"
inside lethe run /data/remove-100.toml --store /var/cache/lethe/store --json > "$work/inside.json"
target/release/lethe run jobs/emoji/remove-100.toml --store "$work/store" --json > "$work/beside.json"
python3 - "$work/inside.json" "$work/beside.json" <<'PY'
import json, sys
inside, beside = (json.loads(open(path).read().splitlines()[-1]) for path in sys.argv[1:])
for report in (inside, beside):
    assert report["status"] == "complete", report["status"]
assert inside["release"].startswith("/var/cache/lethe/store/releases/emoji-100/"), inside["release"]
assert inside["digest"] == beside["digest"], (inside["digest"], beside["digest"])
print(f"container: both releases have the digest {inside['digest']}")
PY
step "done"
