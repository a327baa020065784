#!/usr/bin/env bash
# Installs what `cargo build --release` made, with the libtorch it was built against, where nothing else is needed to run it:
#
#   deploy/install.sh PREFIX      PREFIX/bin/lethe, PREFIX/bin/lethe-worker, PREFIX/lib/lethe/*.so*,
#                                 manual pages and completions for bash, zsh and fish below PREFIX/share
#
# After `make setup-cuda` the CUDA libraries come too, and `--device cuda` works.
set -euo pipefail

die() { printf 'install: error: %s\n' "$*" >&2; exit 1; }
[ $# = 1 ] || die "where to? deploy/install.sh PREFIX"
mkdir -p "$1"
prefix=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

[ -e .libtorch/installed ] || die "there is no libtorch: make setup"
shopt -s nullglob
libraries=(.libtorch/lib/*.so*)
if [ -e .libtorch/full/lib/libtorch_cuda.so ]; then
  # Every library beside every other: that is where they look for each other, and where lethe-worker looks for them.
  libraries+=(.libtorch/full/lib/lib*.so* .libtorch/site/nvidia/*/lib/*.so*)
fi
install -d "$prefix/bin" "$prefix/lib/lethe"
for program in lethe lethe-worker; do
  [ -x "target/release/$program" ] || die "target/release/$program is missing: cargo build --release --locked"
  install -m 755 "target/release/$program" "$prefix/bin/$program"
done
# Copies, not links; several lists may name one library.
declare -A copied=()
for library in "${libraries[@]}"; do
  name=$(basename "$library")
  [ "$name" = libtorch_python.so ] || [ -n "${copied[$name]:-}" ] || cp --dereference --reflink=auto --remove-destination "$library" "$prefix/lib/lethe/$name"
  copied[$name]=yes
done
# Made by the programs themselves, into the places where man and the shells look.
share=$prefix/share
"$prefix/bin/lethe" man "$share/man/man1"
install -d "$share/bash-completion/completions" "$share/zsh/site-functions" "$share/fish/vendor_completions.d"
for program in lethe lethe-worker; do
  complete() { "$prefix/bin/lethe" completion "$1" --program "$program" > "$share/$2"; }
  complete bash "bash-completion/completions/$program"
  complete zsh "zsh/site-functions/_$program"
  complete fish "fish/vendor_completions.d/$program.fish"
done
"$prefix/bin/lethe" --version
"$prefix/bin/lethe-worker" --version
