#!/usr/bin/env bash
# Runs the README's first commands in a bare Debian stable: debootstrap's smallest system, this machine's Rust, and the packages
# of the README's `apt-get install` line. Needs root, debootstrap, git, some 20 GB in $TMPDIR, and one to two hours.
#
#   tests/fresh.sh                what the README promises: make demo, then make test
#   tests/fresh.sh --only demo    one of them; or test, or setup (make setup: fetches libtorch, compiles nothing)
#
# It tests the commit that is checked out. Mirrors, proxies and certificates are this machine's: apt's, pip's, npm's
# and cargo's configuration and environment.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

say() { printf 'fresh: %s\n' "$*"; }
die() { printf 'fresh: error: %s\n' "$*" >&2; exit 1; }
usage() { die "usage: tests/fresh.sh [--only demo|test|setup]"; }

parts=(demo test)
case "$#:${1:-}:${2:-}" in
  0::) ;;
  2:--only:demo | 2:--only:test | 2:--only:setup) parts=("$2") ;;
  *) usage ;;
esac

# --- Outside: a temporary folder, and a process that has mounts and process ids of its own.

# Set by this script alone, for the process inside.
if [ -z "${LETHE_FRESH_ROOT:-}" ]; then
  [ "$(id -u)" = 0 ] || die "root is needed, to mount and to change the root folder: sudo tests/fresh.sh"
  for program in debootstrap git rustc unshare chroot; do
    command -v "$program" >/dev/null ||
      die "$program is missing (Debian: apt-get install debootstrap git util-linux; Rust: as the README says)"
  done
  unshare --mount --pid --fork --mount-proc true 2>/dev/null ||
    die "this machine allows no mount and process namespaces (unshare --mount --pid), not even to root; run it on a machine that does"
  [ -z "$(git status --porcelain)" ] || say "there are uncommitted changes; the commit is tested without them"

  folder=$(mktemp -d "${TMPDIR:-/tmp}/lethe-fresh.XXXXXX")
  inside=
  cleanup() {
    # The inner process ends first, and its mounts with it, so that nothing is removed through a mount.
    if [ -n "$inside" ]; then kill -KILL "$inside" 2>/dev/null || true; wait "$inside" 2>/dev/null || true; fi
    if grep -qF " $folder/" /proc/self/mounts; then die "$folder still has mounts; unmount them, then remove it"; fi
    rm -rf --one-file-system "$folder"
  }
  trap cleanup EXIT
  trap 'exit 130' INT TERM HUP

  LETHE_FRESH_ROOT="$folder/debian" unshare --mount --pid --fork --kill-child --mount-proc --propagation private "$PWD/tests/fresh.sh" "$@" &
  inside=$!
  status=0
  wait "$inside" || status=$?
  inside=
  exit "$status"
fi

# --- Inside: every mount made here disappears with this process.

readonly ROOT="$LETHE_FRESH_ROOT"
# The newcomer's home, below $ROOT.
readonly NEWCOMER=/home/newcomer
mkdir -p "$ROOT"

began=$SECONDS
# took WHAT: how long it was since the last call.
took() {
  say "$1: $((SECONDS - began)) s"
  began=$SECONDS
}

# This machine's mirror of Debian and its proxy.
mirror=
if command -v apt-get >/dev/null; then
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | grep -E '^https?://' | head -n 1 || true)
  apt_proxy=
  eval "$(apt-config shell apt_proxy Acquire::http::Proxy)"
  if [ -n "$apt_proxy" ] && [ -z "${http_proxy:-}" ]; then export http_proxy="$apt_proxy"; fi
fi
certificates=()
case "$mirror" in https:*) certificates=(--include=ca-certificates) ;; esac
# Without a mirror, debootstrap has its own.
if ! debootstrap --variant=minbase "${certificates[@]}" stable "$ROOT" ${mirror:+"$mirror"} > "$ROOT.log" 2>&1; then
  tail -n 20 "$ROOT.log" "$ROOT/debootstrap/debootstrap.log" >&2 2>/dev/null || true
  die "debootstrap could not make a Debian; its last lines are above"
fi
took "Debian $(cat "$ROOT/etc/debian_version") by debootstrap"

mount -t proc proc "$ROOT/proc"
mount --rbind /sys "$ROOT/sys"
mount --rbind /dev "$ROOT/dev"
cp --dereference /etc/resolv.conf /etc/hosts "$ROOT/etc/"
# No package starts a service.
printf '#!/bin/sh\nexit 101\n' > "$ROOT/usr/sbin/policy-rc.d"
chmod +x "$ROOT/usr/sbin/policy-rc.d"

# The environment holds only what reaches registries: proxies, mirrors, certificates.
environment=(HOME="$NEWCOMER" LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
mkdir -p "$ROOT/etc/fresh" "$ROOT$NEWCOMER"
for name in $(compgen -e); do
  value="${!name}"
  case "$name" in
    http_proxy | https_proxy | all_proxy | no_proxy | HTTP_PROXY | HTTPS_PROXY | ALL_PROXY | NO_PROXY) ;;
    PIP_INDEX_URL | PIP_EXTRA_INDEX_URL | PIP_TRUSTED_HOST | PIP_PROXY | PIP_DEFAULT_TIMEOUT) ;;
    NPM_CONFIG_* | npm_config_registry | CARGO_HTTP_PROXY | CARGO_NET_* | CARGO_REGISTRIES_* | CARGO_REGISTRY_* | CARGO_SOURCE_*) ;;
    SSL_CERT_FILE | CURL_CA_BUNDLE | REQUESTS_CA_BUNDLE | PIP_CERT | GIT_SSL_CAINFO | NODE_EXTRA_CA_CERTS | CARGO_HTTP_CAINFO)
      [ -f "$value" ] || continue
      cp --dereference "$value" "$ROOT/etc/fresh/$name.pem"
      value="/etc/fresh/$name.pem"
      ;;
    *) continue ;;
  esac
  environment+=("$name=$value")
done
# setting VARIABLE COMMAND…: adds what COMMAND prints from a configuration file, unless the environment sets VARIABLE.
setting() {
  local name="$1" value
  shift
  [ -z "${!name:-}" ] || return 0
  value=$("$@" 2>/dev/null) || return 0
  case "$value" in '' | null | undefined) ;; *) environment+=("$name=$value") ;; esac
}
setting PIP_INDEX_URL python3 -m pip config get global.index-url
setting PIP_EXTRA_INDEX_URL python3 -m pip config get global.extra-index-url
setting PIP_TRUSTED_HOST python3 -m pip config get global.trusted-host
setting PIP_PROXY python3 -m pip config get global.proxy
setting NPM_CONFIG_REGISTRY npm config get registry
if command -v apt-config >/dev/null; then
  apt-config dump | { grep -E '^Acquire::(http|https|Retries)' || true; } > "$ROOT/etc/apt/apt.conf.d/99fresh"
fi
cargo_home="${CARGO_HOME:-$HOME/.cargo}"
if [ -f "$cargo_home/config.toml" ]; then mkdir -p "$ROOT$NEWCOMER/.cargo" && cp "$cargo_home/config.toml" "$ROOT$NEWCOMER/.cargo/"; fi

# bare COMMAND…: in the bare Debian.
bare() { chroot "$ROOT" /usr/bin/env -i "${environment[@]}" "$@"; }

sysroot=$(rustc --print sysroot)
case "$sysroot" in /usr | /usr/local) die "this machine's Rust is part of $sysroot; a toolchain by rustup is needed, since it is copied" ;; esac
mkdir -p "$ROOT/opt/rust"
for each in bin lib libexec; do [ ! -e "$sysroot/$each" ] || cp -a "$sysroot/$each" "$ROOT/opt/rust/"; done
bare rustc --version
took "Rust, copied"

read -r -a install <<< "$(sed -nE 's/^\$ (sudo )?(apt-get install .*)$/\2/p' README.md | head -n 1)"
[ "${#install[@]}" -gt 2 ] || die "README.md has no line '\$ sudo apt-get install …'"
say "${install[*]}"
bare apt-get update -qq
bare "${install[@]}" -y -qq > "$ROOT.log" 2>&1 || { tail -n 20 "$ROOT.log" >&2; die "'${install[*]}' failed in a bare Debian"; }
took "the README's packages"

git clone --quiet --no-hardlinks "file://$PWD" "$ROOT$NEWCOMER/lethe"
took "the repository, $(git rev-parse --short HEAD)"

for part in "${parts[@]}"; do
  say "make $part"
  bare make -C "$NEWCOMER/lethe" "$part" || die "'make $part' failed in a bare Debian, with nothing but '${install[*]}'"
  took "make $part"
done
say "passed in a bare Debian: ${parts[*]/#/make }, $SECONDS s"
