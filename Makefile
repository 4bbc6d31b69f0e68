# make demo   a small drawn collection: train, extract, cluster, measure, query; a picture of it
# make test   all tests
# make test-oldest   all tests with the oldest packages that the requirements allow, in .venv-oldest
# make audit   known holes in what is installed and in what a new set-up would install
# make web    the page that searches the demo's collection
# make soak   ten minutes of random faults on the demo's collection, and what they changed: nothing
# make benchmark   speed beside that of others, benchmark.json
# All set everything up first, in .venv.

PYTHON ?= python3
PY := .venv/bin/python
OLDEST := .venv-oldest/bin/python
REQUIREMENTS := $(wildcard requirements*.txt)

# Debian's Python comes without venv, and OpenCV's windows want two system libraries.
APT = if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	then apt-get -qq update && apt-get -qq install -y $(1) >/dev/null; \
	else echo "missing system packages; run: sudo apt-get install $(1)" >&2; exit 1; fi

DRAWN := --dataset-base data/demo --items 1000 --views 2 --inshop-items 150
DEMO := --dataset-base data/demo
NETWORK := --enable-inshop-dataset --backbone resnet18 --pretrained none --img-size 88 --crop-size 80
INSHOP_LIST := data/demo/in_shop/list_eval_partition.txt
TEST_LIST := data/demo/Eval/list_eval_partition.txt

.PHONY: setup setup-dev web-setup web demo test test-oldest audit soak benchmark lint clean

setup: .venv/ready
setup-dev: .venv/ready-dev

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed; make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call APT,python3-venv); }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(PY) -c 'import cv2' 2>/dev/null || { $(call APT,libgl1 libglib2.0-0); }
	@touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt requirements-milvus.txt requirements-watch.txt requirements-web.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@command -v chromium >/dev/null || ( $(call APT,chromium) ) \
		|| echo "without chromium the tests of the page are skipped" >&2
	@touch $@

# By a stamp of its own: without the developers' packages.
.venv/ready-web: .venv/ready requirements-web.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-web.txt
	@touch $@

web-setup: .venv/ready-web

web: web-setup
	@test -f data/demo/all_feat.json \
		|| { echo "there is no demo collection; run: make demo" >&2; exit 1; }
	$(PY) web.py --dataset-base data/demo

demo: setup
	$(PY) -m tools.synthetic $(DRAWN)
	@echo "--- the untrained network, to compare with"
	$(PY) train.py $(DEMO) $(NETWORK) --epoch 0
	$(PY) feature_extractor.py $(DEMO) --enable-inshop-dataset --color-top-n 9 --dumped-model model_0_final.pth.tar
	@mkdir -p demo
	$(PY) evaluate.py $(DEMO) --json > demo/untrained.json
	@echo "--- training"
	$(PY) train.py $(DEMO) $(NETWORK) --freeze-param false --epoch 12 --resume
	@echo "--- feature database, clusters, query"
	$(PY) feature_extractor.py $(DEMO) --enable-inshop-dataset --color-top-n 9
	$(PY) kmeans.py $(DEMO)
	$(PY) retrieval.py $$(awk '$$3 == "query" {print $$1; exit}' $(INSHOP_LIST)) $(DEMO)
	@$(PY) retrieval.py $$(awk '$$2 == "test" && n++ % 72 == 20 {print $$1}' $(TEST_LIST)) $(DEMO) \
		--engine exact --top-n 6 --output demo/results.jpg --json > demo/results.json
	@echo; echo "--- what training gave (before: the untrained network)"
	@$(PY) evaluate.py $(DEMO) --against demo/untrained.json
	@echo; echo "a picture of the answers: demo/results.jpg"

# In two processes, each with whole files. Threads that wait for each other leave the cores to others.
TEST := OMP_WAIT_POLICY=passive $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup-dev
	$(TEST)

# Python 3.10 to 3.12: the oldest packages have no wheels for later ones.
.venv-oldest/ready: $(REQUIREMENTS) | setup-dev
	$(PY) -m uv venv --quiet --clear --python $(PYTHON) .venv-oldest
	$(PY) -m uv pip install --quiet --python $(OLDEST) --resolution lowest-direct \
		-r requirements-dev.txt
	@touch $@

test-oldest: .venv-oldest/ready
	$(subst $(PY),$(OLDEST),$(TEST))

# Without --strict pip-audit would say nothing of packages that it has no data on.
AUDIT = $(PY) -m pip_audit --strict --progress-spinner off $(1) 2>.venv/audit; status=$$?; \
	cat .venv/audit >&2; \
	[ $$status = 0 ] || grep -q '^Found' .venv/audit \
		|| echo "nothing was audited: pip-audit found no data, or could not reach it" >&2; \
	exit $$status

audit: setup-dev
	@$(call AUDIT)
	@$(call AUDIT,$(addprefix -r ,$(REQUIREMENTS)))

soak: setup
	$(PY) -m tools.synthetic $(DRAWN)
	$(PY) -m tools.soak --dataset-base data/demo --minutes 10

benchmark: setup-dev
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-benchmark.txt
	$(PY) -m tools.benchmark

lint: setup-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports --no-cache
	$(PY) -m mypy .

clean:
	rm -rf .venv .venv-oldest data/demo demo
