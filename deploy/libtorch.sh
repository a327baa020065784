#!/usr/bin/env bash
# Puts libtorch 2.11.0 into .libtorch/ (ignored by git), where the build and the binaries look for it.
#
#   deploy/libtorch.sh          CPU: PyTorch's wheel without its CUDA half, and the two CUDA libraries libtorch_cpu.so names
#   deploy/libtorch.sh --cuda   the same, with the full CUDA wheels beside it; `--device cuda` opens them at run time
#
# A machine that has libtorch 2.11.0 already: LETHE_LIBTORCH=/opt/libtorch deploy/libtorch.sh
set -euo pipefail
cd "$(dirname "$0")/.."

readonly VERSION=2.11.0
readonly HOME_DIR=.libtorch
readonly STAMP="$HOME_DIR/installed"
want=cpu
[ "${1:-}" = "--cuda" ] && want=cuda
[ -n "${LETHE_LIBTORCH:-}" ] && want="own:$LETHE_LIBTORCH"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# The build links against links: a folder without libtorch_cuda.so, so that one binary serves machines with a GPU and without.
link_torch() { # $1: a folder with include/ and lib/; $2: --relative where it moves with this checkout
  local torch link=(ln -s ${2:+"$2"})
  torch=$(cd "$1" && pwd)
  rm -rf "${HOME_DIR:?}/lib" "$HOME_DIR/include"
  mkdir -p "$HOME_DIR/lib"
  "${link[@]}" "$torch/include" "$HOME_DIR/include"
  local library
  for library in "$torch"/lib/*.so*; do
    case "$(basename "$library")" in libtorch_cuda*|libc10_cuda*|libtorch_python*) continue ;; esac
    "${link[@]}" "$library" "$HOME_DIR/lib/$(basename "$library")"
  done
  # The full installation, for `--device cuda`.
  rm -f "$HOME_DIR/full" && "${link[@]}" "$torch" "$HOME_DIR/full"
  printf '%s\n' "$VERSION" > "$HOME_DIR/build-version"
}

link_fetched() {
  link_torch "$HOME_DIR/site/torch" --relative
  local library
  for library in "$HOME_DIR"/site/nvidia/cu13/lib/*.so*; do
    [ -e "$HOME_DIR/lib/$(basename "$library")" ] || ln -s --relative "$library" "$HOME_DIR/lib/"
  done
}

have=$(cat "$STAMP" 2>/dev/null || true)
# A CUDA installation contains the CPU one.
if [ "$have" = "$want" ] || { [ "$have" = cuda ] && [ "$want" = cpu ]; }; then
  # Links of an earlier version of this script do not survive a move of the checkout.
  if [ ! -e "$HOME_DIR/lib/libtorch_cpu.so" ] && [ -e "$HOME_DIR/site/torch/lib/libtorch_cpu.so" ]; then link_fetched; fi
  if [ -e "$HOME_DIR/lib/libtorch_cpu.so" ]; then
    say "libtorch $VERSION is in $HOME_DIR ($have)"
    exit 0
  fi
fi

if [[ "$want" == own:* ]]; then
  [ -f "$LETHE_LIBTORCH/lib/libtorch_cpu.so" ] || die "LETHE_LIBTORCH=$LETHE_LIBTORCH has no lib/libtorch_cpu.so"
  found=$(cat "$LETHE_LIBTORCH/build-version" 2>/dev/null || cat "$LETHE_LIBTORCH/version.py" 2>/dev/null || true)
  case "$found" in
    *"$VERSION"*) ;;
    *) die "LETHE_LIBTORCH=$LETHE_LIBTORCH is not libtorch $VERSION (its build-version says '${found:-nothing}')" ;;
  esac
  mkdir -p "$HOME_DIR"
  link_torch "$LETHE_LIBTORCH"
  printf '%s' "$want" > "$STAMP"
  say "using the libtorch in $LETHE_LIBTORCH"
  exit 0
fi

[ "$(uname -sm)" = "Linux x86_64" ] || die "the wheels used here are for Linux x86_64; on $(uname -sm) install libtorch $VERSION and set LETHE_LIBTORCH"
command -v python3 >/dev/null || die "python3 is needed to fetch libtorch (Debian: apt-get install python3-pip)"
python3 -m pip --version >/dev/null 2>&1 || die "pip is needed to fetch libtorch (Debian: apt-get install python3-pip)"

rm -f "$STAMP"
rm -rf "$HOME_DIR/site.new"
mkdir -p "$HOME_DIR"
pip_install() { python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-compile --no-warn-conflicts --target "$HOME_DIR/site.new" "$@"; }
if [ "$want" = cuda ]; then
  say "fetching libtorch $VERSION with CUDA (about 2.5 GB) …"
  pip_install "torch==$VERSION"
else
  say "fetching libtorch $VERSION for CPU (about 540 MB) …"
  pip_install --no-deps "torch==$VERSION" 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*'
  # 1 GB that a CPU build never opens.
  rm -f "$HOME_DIR"/site.new/torch/lib/libtorch_cuda*.so "$HOME_DIR"/site.new/torch/lib/libtorch_nvshmem.so
fi
rm -rf "$HOME_DIR/site" && mv "$HOME_DIR/site.new" "$HOME_DIR/site"
link_fetched
printf '%s' "$want" > "$STAMP"
say "libtorch $VERSION is in $HOME_DIR ($want)"
