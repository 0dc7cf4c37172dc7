# Reproduction of TAID (arXiv 2501.16937). `make help` lists everything.
SCALE ?= cpu
SEEDS ?= 1
WORKERS ?= 2
# Your own runs go to runs/<scale>; `RESULTS=results` adds to the committed reference rows instead.
RESULTS ?= runs/$(SCALE)
PYTHON ?= python3.11
export TAID_CACHE ?= $(CURDIR)/.cache
export HF_HUB_OFFLINE ?= 1

PY = .venv/bin/python
# a smoke run leaves the committed notebooks alone
NOTEBOOK = $(if $(filter smoke,$(SCALE)),@: skipped,.venv/bin/jupyter-execute --inplace)
STAMP = .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup data test test-slow table1 table2 table3 table6 figure2 adaptivity ablations bench cost rounds theory mode-collapse claims report clean

help: ## this list
	@echo "make TARGET [SCALE=smoke|cpu] [SEEDS=n] [WORKERS=2] [RESULTS=folder]"
	@echo
	@printf "  %-15s %-58s %s\n" target "what" "minutes on two cores (smoke / cpu)"
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\) | \(.*\)/  \1|\2|\3/p; s/^\([a-z0-9-]*\):.*## \([^|]*\)$$/  \1|\2|/p' $(MAKEFILE_LIST) \
	  | awk -F'|' '{ printf "%-17s %-58s %s\n", $$1, $$2, $$3 }'

setup: $(STAMP) data ## virtual environment, pinned packages, texts fetched and checked | 3

$(STAMP): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11, or name yours: make PYTHON=python3 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

data: $(STAMP) ## fetch the public texts and check their digests | 0.2
	$(PY) -m taid.studies.sources

test: setup ## the test suite | 5
	$(PY) -m pytest -q

test-slow: setup ## the slow tests: notebooks, thousand-example properties, kills | 10
	$(PY) -m pytest -q -m slow

table1: setup ## Table 1: instruction tuning, 11 methods, 3 pairs | 2 / 40 for one seed, 15 each further
	$(PY) paper_experiments/01_table1_instruction_tuning.py --scale $(SCALE) --seeds $(SEEDS) --workers $(WORKERS) --results $(RESULTS)
	$(PY) -m analysis table1 --scale $(SCALE) --results $(RESULTS)

table2: setup ## Table 2: continued pre-training from SmolLM2-135M, eight methods, lm-eval | 2 / 30 once, 50 a seed
	$(PY) paper_experiments/02_table2_continued_pretraining.py --scale $(SCALE) --seeds $(SEEDS) --workers $(WORKERS) --results $(RESULTS)
	$(PY) -m analysis table2 --scale $(SCALE) --results $(RESULTS)

table3: setup ## Table 3: head and tail mass of Table 1's students | 0.5 / 3 after table1
	$(PY) paper_experiments/03_table3_probability_mass.py --scale $(SCALE) --seeds $(SEEDS) --workers $(WORKERS) --results $(RESULTS)
	$(PY) -m analysis table3 --scale $(SCALE) --results $(RESULTS)

table6: setup ## Table 6, Figure 2 right: the capacity gap, four teachers of one student | 1.5 / 45 for five seeds
	$(PY) paper_experiments/06_table6_capacity_gap.py --scale $(SCALE) --seeds $(SEEDS) --workers $(WORKERS) --results $(RESULTS)
	$(PY) -m analysis table6 --scale $(SCALE) --results $(RESULTS)

figure2: setup ## Figure 2 left and middle: t over training, the objective and its variance | 1 / 6 for four seeds after table1
	$(PY) paper_experiments/09_figure2_interpolation.py --scale $(SCALE) --seeds $(SEEDS) --workers $(WORKERS) --results $(RESULTS)
	$(PY) -m analysis figure2 --scale $(SCALE) --results $(RESULTS)

adaptivity: setup ## is the adaptive update adaptive? floor, momentum, replayed curves | 1 / 4 for four seeds after table1
	$(PY) paper_experiments/14_adaptivity.py --scale $(SCALE) --seeds $(SEEDS) --workers $(WORKERS) --results $(RESULTS)
	$(PY) -m analysis adaptivity --scale $(SCALE) --results $(RESULTS)

ablations: setup ## TAID's parts, one by one, around Table 1's first pair | 1 / 8 for one seed after table1
	$(PY) paper_experiments/15_ablations.py --scale $(SCALE) --seeds $(SEEDS) --workers $(WORKERS) --results $(RESULTS)
	$(PY) -m analysis ablations --scale $(SCALE) --results $(RESULTS)

bench: setup ## speed and memory of every loss, beside the official code; others after `python -m benchmarks peers`; SCALE=gpu on a GPU | 1 / 13
	$(PY) -m benchmarks losses --scale $(SCALE) --results $(RESULTS)
	$(PY) -m analysis speed --scale $(SCALE) --results $(RESULTS)

cost: setup ## the paper's cost claim: TAID, KL, DistiLLM, GKD, seconds per step | 1 / 5
	$(PY) -m benchmarks cost --scale $(SCALE) --results $(RESULTS)
	$(PY) -m analysis speed --scale $(SCALE) --results $(RESULTS)

rounds: setup ## repeated rounds with language models, beside the theory | 1 / 13 after table1
	$(PY) paper_experiments/13_rounds.py --scale $(SCALE) --workers $(WORKERS) --results $(RESULTS)
	$(PY) -m analysis rounds --scale $(SCALE) --results $(RESULTS)

theory: setup ## the theorem, the sharp bound, phase diagram; then the notebook | 0.1 / 2
	$(PY) paper_experiments/11_theory.py --scale $(SCALE) --results $(RESULTS)
	$(NOTEBOOK) notebooks/theory.ipynb

mode-collapse: setup ## mixtures of Gaussians: averaging and collapse; then the notebook | 0.3 / 8
	$(PY) paper_experiments/12_mode_collapse.py --scale $(SCALE) --results $(RESULTS)
	$(NOTEBOOK) notebooks/mode_collapse.ipynb

claims: setup ## the paper's claims, judged on the committed rows | 0.1
	$(PY) -m analysis claims

report: setup ## render the committed rows in results/ again | 0.1
	$(PY) -m analysis report

clean: ## remove caches and trained models, keep all rows
	rm -rf .cache build *.egg-info .pytest_cache
