# make demo and make test need nothing but a fresh Debian 12 and root.
PYTHON := .venv/bin/python
REPORTS := build/reports

.PHONY: docs demo test lint type bench proto manifests clean setup test-real test-vm test-arm test-faults

setup:
	@tools/setup

demo: setup
	@$(PYTHON) -m lab.app demo --report $(REPORTS)/demo.json

test:
	@tools/setup --tests
	@mkdir -p $(REPORTS)
	@.venv/bin/lint-imports
	@$(PYTHON) -m pytest -n 2 --dist loadfile

# The contract tests on real parts: KUBECONFIG names a scratch cluster, SPDK_TGT a spdk_tgt binary.
test-real: setup
	@$(PYTHON) -m pytest -m "real_api_server or real_spdk"

# cni-bin for a DPU's own processors, run under emulation.
test-arm: setup
	@apt-get install -y -q --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static >/dev/null
	@$(PYTHON) hatch_build.py --cni-bin-for=aarch64-linux-gnu
	@$(PYTHON) -m pytest tests/node/test_cni_bin.py -k aarch64

# Real SR-IOV, VFIO, NVMe and OVS' kernel datapath, in a guest under QEMU.
test-vm: setup
	@tools/setup --vm
	@$(PYTHON) -m pytest tests/vm -m vm --tb=native -p no:hypothesispytest

# Every daemon killed at every point; `make test` has some of each.
test-faults: setup
	@tools/setup --tests
	@$(PYTHON) -m pytest -m faults -n 2 --dist loadfile

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports

type: setup
	@.venv/bin/mypy

bench: setup
	@mkdir -p $(REPORTS)
	@for file in benchmarks/*.py; do \
	  name=$$(basename $$file .py); \
	  case $$name in __init__|report) continue;; esac; \
	  echo "== $$name"; $(PYTHON) -m benchmarks.$$name || exit 1; \
	done

docs: setup
	@.venv/bin/mkdocs build --strict --quiet && echo "build/site/index.html"

proto: setup
	@$(PYTHON) hatch_build.py --force

# deploy/kustomize from the Helm chart; helm comes with the test tools.
manifests: setup
	@tools/setup --tests
	@$(PYTHON) tools/manifests.py

clean:
	@rm -rf build dist dpu_offload_stubs cni/bin/dpu-offload cni/bin/dpu-offload-aarch64 .mypy_cache .ruff_cache .pytest_cache .hypothesis
