# Everything a contributor needs; `make` lists it. The only things a machine must have are Python ≥ 3.11, make and, where
# official downloads can't be reached, Go.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := operator agent_image tests

.DEFAULT_GOAL := help
.PHONY: help demo test unit check generate verify-figures format lock clean soak mutations faults-process faults bench-endpoint bench-supervisor e2e-openclaw

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1 — \2/'

demo: $(STAMP) ## a real Kubernetes API, a simulated Fly and an agent on this machine (ONCE=1: the whole story, then an end; OPENCLAW=1: a real OpenClaw)
	@$(BIN)/python -m roost.local.story $(if $(OPENCLAW),--openclaw) $(if $(ONCE),--once)

test: $(STAMP) ## all tests, those against the real API server and the whole story included
	$(BIN)/python -m pytest

unit: $(STAMP) ## the quick tests only
	$(BIN)/python -m pytest tests/unit

e2e-openclaw: $(STAMP) ## a real OpenClaw through everything that happens to it, with its figures: fifteen minutes (ARGS="-k upgrade")
	$(BIN)/python tests/openclaw/openclaw_run.py $(ARGS)

KEPT := $${XDG_STATE_HOME:-$$HOME/.local/state}/roost/faults
faults: $(STAMP) ## every story, every call, every fault, on virtual time (REPLAY=story/call/fault, STORIES=a,b, SECONDS=3, SEED=1, KEEP=dir)
	@PYTHONPATH=tests $(BIN)/python -m faults.sweep $(if $(REPLAY),--replay "$(REPLAY)") $(if $(STORIES),--stories "$(STORIES)") \
		$(if $(SECONDS),--seconds "$(SECONDS)") $(if $(SEED),--seed "$(SEED)") $(if $(REPLAY),,--keep "$(or $(KEEP),$(KEPT))")

faults-process: $(STAMP) ## operators killed and paused, outages, jumping clocks, two clusters (MINUTES=15 SEED=… PART=… LIFE=…)
	@$(BIN)/python tests/faults/process/process_run.py --minutes $(or $(MINUTES),15) \
		$(if $(SEED),--seed $(SEED)) $(if $(PART),--part $(PART)) $(if $(LIFE),--life $(LIFE)) $(if $(DIR),--dir $(DIR))

soak: $(STAMP) ## many Agents, everything at random for minutes, on the real stack (MINUTES=10 AGENTS=50 SEED=… to replay)
	$(BIN)/python tests/faults/soak/soak.py --minutes $(or $(MINUTES),10) --agents $(or $(AGENTS),50) \
		$(if $(SEED),--seed $(SEED)) $(if $(DIR),--dir $(DIR))

bench-endpoint: $(STAMP) ## what the endpoint bears, one core for it, one for its callers (PARTS=longpoll,tls,calls,change,hostile AGENTS=10000)
	@$(BIN)/python tests/bench/endpoint/endpoint_bench.py $(if $(PARTS),--parts $(PARTS)) $(if $(AGENTS),--agents $(AGENTS)) \
		$(if $(CHANGES),--changes $(CHANGES))

bench-supervisor: $(STAMP) ## what the supervisor needs, how fast it is, what it leaves behind (PARTS=boot,memory,idle,respawn,change,lives,real ROUNDS=5)
	@PYTHONPATH=tests/image:tests/openclaw $(BIN)/python tests/bench/supervisor/supervisor_bench.py \
		$(if $(PARTS),--parts $(PARTS)) $(if $(ROUNDS),--rounds $(ROUNDS))

mutations: $(STAMP) ## switches off one safety rule at a time in a copy, and sees a test turn red (ONLY="part of a name")
	$(BIN)/python tests/faults/mutations/mutation_run.py $(if $(ONLY),--only "$(ONLY)")

check: $(STAMP) ## style, types, layers, and that generated files are up to date
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(BIN)/python -m roost.api.generate "$$fresh" && \
	for file in $$(cd "$$fresh" && find . -type f); do diff -u "$$file" "$$fresh/$$file" || exit 1; done

generate: $(STAMP) ## write crds/ and the generated reference pages anew
	$(BIN)/python -m roost.api.generate

verify-figures: $(STAMP) ## figures of the last demo and the last `make faults`, from their records alone (DIR=… for another stack)
	@dir="$(or $(DIR),$${XDG_STATE_HOME:-$$HOME/.local/state}/roost/demo)"; \
	$(BIN)/python -m roost.local.verify_figures --ledger "$$dir/fly/ledger.jsonl" --audit "$$dir"/audit*.jsonl \
		$$(test -f "$$dir/logs/idle-window" && echo --idle-file "$$dir/logs/idle-window"); code=$$?; \
	if [ -z "$(DIR)" ] && [ -d "$(KEPT)" ]; then PYTHONPATH=tests $(BIN)/python -m faults.recount "$(KEPT)" || code=1; fi; exit $$code

format: $(STAMP) ## format the code
	$(BIN)/ruff check --fix $(PACKAGES)
	$(BIN)/ruff format $(PACKAGES)

# One lock for all, so that what is tested is what is shipped; no index address goes into the files.
LOCK := $(BIN)/pip-compile --quiet --strip-extras --generate-hashes --no-header --allow-unsafe \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host
lock: $(STAMP) ## resolve the dependencies anew
	$(LOCK) --upgrade -o requirements/dev.txt --extra operator --extra dev pyproject.toml
	$(LOCK) -c requirements/dev.txt -o requirements/operator.txt --extra operator pyproject.toml
	$(LOCK) -c requirements/dev.txt -o requirements/agent.txt pyproject.toml

clean: ## remove what the other targets made in this folder
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache roost.egg-info

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
