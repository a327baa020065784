#!/usr/bin/env bash
# Compares how Lethe reads images, shards and models with Pillow, webdataset, transformers and open_clip. Then removes eight concepts
# from the demo model and checks the release with transformers, its edits by least squares against PyTorch, and what it proves with OpenSSF
# Model Signing and the Hub's model card parser, installs the wheel and uses its module, measures two rows of the curve of docs/evidence, and
# follows the how-to pages of targets.
# Everything runs in Python environments of its own. `run.sh inputs` stops after the comparisons.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly HOME_DIR=.tools/ecosystem

say() { printf 'ecosystem: %s\n' "$*"; }

tests/ecosystem/peers.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --release --locked --workspace
peer() { HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$HOME_DIR/site" python3 "$@"; }
say "reading odd images, tars and models as the originals do …"
for inputs in images tars configs; do peer "tests/ecosystem/check_$inputs.py" target/release/lethe-read; done
if [[ ${1:-} == inputs ]]; then exit; fi

# The demo's data with the narrow model of the tests, whose float32 weights are compared bit for bit.
mkdir "$work/emoji"
cp -rs "$PWD/jobs/emoji/." "$work/emoji/"
rm -rf "$work/emoji/model" "$work/emoji/store"
ln -s "$PWD/tests/model" "$work/emoji/model"
target() { printf '[[release.target]]\nname = "%s"\nkind = "%s"\nuri = "%s"\n' "$1" "$2" "$work/$3"; }
released_by() { python3 -c 'import json, sys; print(json.loads(open(sys.argv[1]).read().splitlines()[-1])["release"])' "$1"; }
say "removing eight concepts …"
target/release/lethe run "$work/emoji/small.toml" --store "$work/store" --json > "$work/report.json"
release=$(released_by "$work/report.json")
target/release/lethe-embed "$work/emoji/model" "$work/emoji/validation.tar" "$work/base.safetensors"
target/release/lethe-embed "$release" "$work/emoji/validation.tar" "$work/released.safetensors"
peer tests/ecosystem/check_release.py "$work/emoji" small.toml "$release" "$work/base.safetensors" "$work/released.safetensors"
mkdir "$work/proof"
peer tests/ecosystem/check_proof.py target/release/lethe "$work/store" emoji-8:1 "$work/proof"

say "the wheel in fresh virtual environments, and its module …"
tests/ecosystem/wheel.sh "$HOME_DIR/site"

say "a SigLIP and what is removed from it, from raw images and texts …"
target/release/lethe run tests/model-siglip/remove.toml --store "$work/siglip" --json > "$work/siglip.json"
released=$(released_by "$work/siglip.json")
peer tests/ecosystem/check_siglip.py make "$work/odd.tar"
for shard in jobs/emoji/validation.tar "$work/odd.tar"; do
  target/release/lethe-embed tests/model-siglip "$shard" "$work/siglip-base.safetensors"
  target/release/lethe-embed "$released" "$shard" "$work/siglip-released.safetensors"
  peer tests/ecosystem/check_siglip.py tests/model-siglip "$released" "$work/siglip-base.safetensors" "$work/siglip-released.safetensors" "$shard"
done

say "edits by least squares, found again from their formulas …"
head -500 jobs/emoji/retain-texts.txt > "$work/emoji/some-texts.txt"
sed 's/^retain = .*/retain = ["retain-00000.tar"]\nretain_texts = ["some-texts.txt"]/' jobs/emoji/small.toml > "$work/emoji/least-squares.toml"
printf '[composition]\nmethod = "least-squares"\nrank = 1024\nrounds = 0\n[policy]\nrequired = []\n[gates]\nutility_kept = 0.0\n' >> "$work/emoji/least-squares.toml"
target/release/lethe run "$work/emoji/least-squares.toml" --store "$work/least-squares" --json > "$work/least-squares.json"
release=$(released_by "$work/least-squares.json")
peer tests/ecosystem/check_least_squares.py "$work/emoji" least-squares.toml "$release" "$work/least-squares"

say "Lethe and EMCID at ten concepts, as the curve of docs/evidence measures them …"
peer tests/evidence/rivals.py target/release/lethe "$work/curve" --curve "$work/curve.csv" --model tests/model --concepts 10 --only Lethe EMCID
peer tests/evidence/curve.py "$work/curve.csv" "$work/curve.svg"
python3 - "$work/curve.csv" <<'END'
import csv, sys
rows = list(csv.DictReader(open(sys.argv[1], newline="")))
good = len(rows) == 2 and all(float(row["fa5"]) <= 5 and float(row["covered_ta1_kept"]) >= 85 for row in rows)
print(f"  {'ok  ' if good else 'FAIL'} both forget ten concepts and keep covered classes")
sys.exit(not good)
END

say "four concepts into seven kinds of vision-language models with the SigLIP inside …"
peer tests/ecosystem/check_vision_language.py make tests/model-siglip "$work/siglip-models"
absolute() { sed "s|\.\./\.\./jobs|$PWD/jobs|; s|\.\./model-siglip|$PWD/tests/model-siglip|; s|concepts.csv|four.csv|" "$@"; }
absolute tests/model-siglip/concepts.csv | head -5 > "$work/four.csv"
# How far each concept is forgotten is not what is checked here, nor below.
{ absolute tests/model-siglip/remove.toml; printf '[policy]\nrequired = []\n[composition]\ntowers = "vision"\nrounds = 1\n'
  for kind in $(peer tests/ecosystem/check_vision_language.py kinds tests/model-siglip); do target "$kind" vision-language "siglip-models/$kind"; done; } > "$work/siglip.toml"
target/release/lethe run "$work/siglip.toml" --store "$work/siglip" --json > "$work/siglip-targets.json"
peer tests/ecosystem/check_vision_language.py check "$work/siglip-models" "$(released_by "$work/siglip-targets.json")"

say "the same eight into four pipelines and three vision-language models …"
mkdir "$work/job"
cp -rs "$work/emoji/." "$work/job/"
peer tests/ecosystem/check_targets.py make "$work/emoji/model" "$work"
peer tests/ecosystem/check_vision_language.py make "$work/emoji/model" "$work/clip"
printf 'tulip\nbasketball\nred apple\n' > "$work/job/protect.txt"
{ sed 's/^classes = .*/&\nprotect = "protect.txt"/' "$work/emoji/small.toml"; target sd stable-diffusion pipeline; target sdxl stable-diffusion xl; target sd3 diffusion three; target flux diffusion flux; } > "$work/job/text.toml"
{ cat "$work/emoji/small.toml"; printf '[policy]\nrequired = 0.1\n[composition]\ntowers = "vision"\nrounds = 1\n'; target llava llava llava; for kind in $(peer tests/ecosystem/check_vision_language.py kinds "$work/emoji/model"); do target "$kind" vision-language "clip/$kind"; done; } > "$work/job/vision.toml"
releases=()
for tower in text vision; do
  target/release/lethe run "$work/job/$tower.toml" --store "$work/store" --json > "$work/$tower.json"
  releases+=("$(released_by "$work/$tower.json")")
done
peer tests/ecosystem/check_targets.py check "$work" "${releases[@]}"
peer tests/ecosystem/check_vision_language.py check "$work/clip" "${releases[1]}"
peer tests/ecosystem/check_protected.py "$work/emoji/model" "${releases[0]}"

say "the project's probes on both: they draw and ask, though random models do neither well …"
mkdir "$work/probes"
python3 - "$work/probes" <<'END'
import csv, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
classes = [row["class"] for row in csv.DictReader(open("jobs/emoji/split.csv")) if row["role"] == "covered"][:6]
(folder / "groups.csv").write_text("class,group\n" + "".join(f"{name},covered\n" for name in classes))
(folder / "judge.py").write_text('def load(argument):\n    return lambda pictures: [argument.split("+") for _ in pictures]\n')
site, probes = pathlib.Path(".tools/ecosystem/site").resolve(), pathlib.Path("deploy/probes").resolve()
def probe(name, script, *arguments):
    command = ["env", f"PYTHONPATH={site}", "HF_HUB_OFFLINE=1", "python3", str(probes / f"{script}.py"), "--retained", "groups.csv", *arguments]
    (folder / f"{name}.toml").write_text(f'[probe]\nname = "{name}"\ncommand = {json.dumps(command)}\n')
for target in ("sd", "flux"):
    probe(target, "stable_diffusion", "--judge", f"judge.py:pizza+{classes[0]}", "--steps", "2", "--side", "16", "--target", target)
probe("llava", "llava", "--target", "llava", "--pictures", str(pathlib.Path("jobs/emoji/test.tar").resolve()), "--each", "4")
END
measured() { # NAME RELEASE NUMBER…
  target/release/lethe evaluate "$2" --store "$work/store" --probe "$work/probes/$1.toml" --json > "$work/$1.json"
  python3 - "$work/$1.json" "${@:3}" <<'END'
import json, sys
probe = json.loads(open(sys.argv[1]).read().splitlines()[-1])["probes"][0]
missing = [name for name in sys.argv[2:] if name not in probe["numbers"]]
print(f"  {'FAIL' if missing else 'ok  '} probe {probe['name']}: {len(probe['numbers'])} numbers, {len(probe.get('pictures', []))} pictures", *missing)
sys.exit(bool(missing))
END
}
for target in sd flux; do measured "$target" "${releases[0]}" ua changed.removed drawn.removed drawn.covered ira.covered; done
measured llava "${releases[1]}" right.removed right.covered still.covered

say "the how-to pages of targets, as a reader follows them, on models that draw and answer …"
HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$PWD/$HOME_DIR/site" cargo test --release --locked --workspace --test how_to -- --ignored
