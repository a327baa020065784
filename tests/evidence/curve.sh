#!/usr/bin/env bash
# Measures the rows of the curve that are missing, draws the plot and prints the table. `small` takes the narrow model, Lethe and EMCID, and
# one and ten concepts, and writes to target/evidence.
#
# usage: curve.sh all|small [OPTION OF rivals.py…]
set -euo pipefail
cd "$(dirname "$0")/../.."

work=target/evidence results=docs/evidence/curve.csv picture=docs/pictures/curve.svg
options=()
if [[ $1 == small ]]; then
  results=$work/small.csv picture=$work/small.svg
  rm -f "$results"
  options=(--model tests/model --concepts 1 10 --only Lethe EMCID)
fi
python3 tests/evidence/rivals.py target/release/lethe "$work" --curve "$results" "${options[@]}" "${@:2}"
python3 tests/evidence/curve.py "$results" "$picture"
