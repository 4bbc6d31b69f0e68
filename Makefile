# Everything that needs packages sets them up first, in .venv; `make` alone lists the targets.

PYTHON ?= python3
PY := .venv/bin/python
OLDEST := .venv-oldest/bin/python
REQUIREMENTS := $(wildcard requirements*.txt)

# Debian's Python comes without venv.
APT = if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	then apt-get -qq update && apt-get -qq install -y $(1) >/dev/null; \
	else echo "missing system packages; run: sudo apt-get install $(1)" >&2; exit 1; fi

DRAWN := --dataset-base data/demo --items 700 --views 2 --inshop-items 300
DEMO := --dataset-base data/demo
NETWORK := --enable-inshop-dataset --backbone resnet18 --pretrained none --img-size 88 --crop-size 80
INSHOP_LIST := data/demo/in_shop/list_eval_partition.txt
TEST_LIST := data/demo/Eval/list_eval_partition.txt

.PHONY: help setup setup-dev web-setup web demo test test-oldest lint benchmark gpu soak audit \
	settings clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: .venv/ready ## install the packages of requirements.txt
setup-dev: .venv/ready-dev

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed; make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call APT,python3-venv); }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt requirements-demo.txt requirements-formats.txt requirements-milvus.txt requirements-models.txt requirements-watch.txt requirements-web.txt
	@{ { command -v chromium && PATH="$$PATH:/usr/sbin" command -v nginx; } >/dev/null \
		|| ( $(call APT,chromium nginx) ) \
		|| echo "without chromium and nginx tests of the page are skipped" >&2; } & \
		$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt; \
		status=$$?; wait; exit $$status
	@touch $@

# Targets of their own: without the developers' packages.
.venv/ready-demo: .venv/ready requirements-demo.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-demo.txt
	@touch $@

.venv/ready-web: .venv/ready requirements-web.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-web.txt
	@touch $@

web-setup: .venv/ready-web

web: web-setup ## serve the page that searches the demo's collection
	@test -f data/demo/all_feat.json \
		|| { echo "there is no demo collection; run: make demo" >&2; exit 1; }
	$(PY) web.py --dataset-base data/demo

demo: .venv/ready-demo ## a small drawn collection: train, extract, cluster, evaluate, query; a picture of it
	$(PY) -m tools.synthetic $(DRAWN)
	@echo "--- the untrained network, to compare with"
	$(PY) train.py $(DEMO) $(NETWORK) --epoch 0
	$(PY) feature_extractor.py $(DEMO) --enable-inshop-dataset --color-top-n 9 --dumped-model model_0_final.pth.tar
	@mkdir -p demo
	$(PY) evaluate.py $(DEMO) > demo/untrained.txt
	@echo "--- training"
	$(PY) train.py $(DEMO) $(NETWORK) --lr 0.001 --triplet-weight 0.2 --triplet-batch-size 64 --epoch 8 --resume
	@echo "--- feature database, clusters, query"
	$(PY) feature_extractor.py $(DEMO) --enable-inshop-dataset --color-top-n 9
	$(PY) kmeans.py $(DEMO)
	$(PY) evaluate.py $(DEMO) --calibrate
	$(PY) retrieval.py $$(awk '$$3 == "query" {print $$1; exit}' $(INSHOP_LIST)) $(DEMO)
	@$(PY) retrieval.py $$(awk '$$2 == "test" && n++ % 72 == 20 {print $$1}' $(TEST_LIST)) $(DEMO) \
		--engine exact --top-n 6 --output demo/results.jpg --json > demo/results.json
	@echo; echo "--- the untrained network"; cat demo/untrained.txt
	@echo; echo "--- the trained network"; $(PY) evaluate.py $(DEMO)
	@echo; echo "a picture of the answers: demo/results.jpg"

# Two processes, each with whole files; threads that wait for one another leave them the cores.
TEST := OMP_WAIT_POLICY=passive $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup-dev ## all tests
	$(TEST)

# Python 3.10 to 3.12: the oldest packages have no wheels for later ones.
.venv-oldest/ready: $(REQUIREMENTS) | setup-dev
	$(PY) -m uv venv --quiet --clear --python $(PYTHON) .venv-oldest
	$(PY) -m uv pip install --quiet --python $(OLDEST) --resolution lowest-direct \
		-r requirements-dev.txt
	@touch $@

test-oldest: .venv-oldest/ready ## all tests with the oldest packages that the requirements allow
	$(subst $(PY),$(OLDEST),$(TEST))

# Without --strict pip-audit would not report packages that it has no data on.
AUDIT = $(PY) -m pip_audit --strict --progress-spinner off $(1) 2>.venv/audit; status=$$?; \
	cat .venv/audit >&2; \
	[ $$status = 0 ] || grep -q '^Found' .venv/audit \
		|| echo "nothing was audited: pip-audit found no data, or could not reach it" >&2; \
	exit $$status

audit: setup-dev ## known vulnerabilities of the installed and of the required packages
	@$(call AUDIT)
	@$(call AUDIT,$(addprefix -r ,$(REQUIREMENTS)))

soak: .venv/ready-demo ## ten minutes of random faults while the demo's collection is trained and extracted
	$(PY) -m tools.synthetic $(DRAWN)
	$(PY) -m tools.soak --dataset-base data/demo --minutes 10

benchmark: setup-dev ## speed on a CPU beside other libraries; benchmark.json
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-benchmark.txt
	$(PY) -m tools.benchmark

# Needs a torch with CUDA, and pytest; installs nothing.
gpu: ## tests and speed on a GPU, in about 5 minutes; gpu.json
	$(or $(wildcard $(PY)),$(PYTHON)) -m tools.benchmark.gpu

settings: setup ## write docs/settings.md from config.py
	$(PY) -m tools.settings

lint: setup-dev ## style, import layers, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports --no-cache
	$(PY) -m mypy .

clean: ## remove the environments and the demo
	rm -rf .venv .venv-oldest data/demo demo
