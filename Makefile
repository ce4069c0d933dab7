# SPDX-License-Identifier: Apache-2.0
.PHONY: build test acceptance lint format bench gpu

build:  ## rebuild the native module in place, quickly, with the tools of this environment
	pip install -e . --no-build-isolation --no-deps

JOBS ?= 2
test:  ## what needs no GPU; JOBS test files at a time
	python -m pytest -n $(JOBS) --dist loadfile

acceptance:  ## the long checks
	python -m pytest -m acceptance

lint:
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cuh' 'csrc/*.cpp' 'csrc/*.cu' 'benchmarks/*.cu' 'tests/*.h' 'tests/*.cpp')
	codespell csrc spectralgpt tests tools benchmarks configs docs examples *.md

format:
	ruff check --fix .
	ruff format .
	clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cuh' 'csrc/*.cpp' 'csrc/*.cu' 'benchmarks/*.cu' 'tests/*.h' 'tests/*.cpp')

bench:  ## one training step against the plain PyTorch step of the same maths
	python benchmarks/step.py

PART ?= all
OUT ?= runs/gpu
gpu:  ## what needs a GPU; PART=build|tests|attention|sanitizer|bench|kernels|all, reports in OUT
	python benchmarks/gpu.py --part $(PART) --out $(OUT)
