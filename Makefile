# Reproduction of TAID (arXiv 2501.16937). `make help` lists everything.
SCALE ?= cpu
SEEDS ?= 1
WORKERS ?= $(if $(filter paper gpu,$(SCALE)),1,2)
# Who does the jobs of a table: local (processes of this machine), slurm or ray, docs/many_gpus.md.
LAUNCHER ?=
# Your own runs go to runs/<scale>; `RESULTS=results` adds to the committed reference rows instead.
RESULTS ?= runs/$(SCALE)
# The table of which `make verify` runs a cell again.
TABLE ?= table6
# The first of these that runs makes the environment; `make setup PYTHON=…` names yours.
PYTHON ?= python3.14 python3.13 python3.12 python3.11
# `TORCH=any`: PyTorch for CUDA, 2.5 GB, also where no NVIDIA GPU is
TORCH ?=
export TAID_CACHE ?= $(CURDIR)/.cache
export HF_HUB_OFFLINE ?= $(if $(filter paper,$(SCALE)),0,1)
# of mt-bench: the student, its judge, and the judge's price "IN OUT" in dollars for a million tokens
MODEL ?=
JUDGE ?= gpt-4
PRICE ?=

# What is said wrongly is refused before any work.
$(if $(wildcard requirements.txt),,$(error make works in the repository's own folder: make -C FOLDER $(MAKECMDGOALS)))
SEEDED = decide table1 table1-protocol-1 table2 table2-protocol-1 table3 table4 table5 table6 table6-protocol-1 table7 table8 figure1 figure2 adaptivity ablations departures rounds
SEEDLESS = figure3 bench cost theory mode-collapse
given := $(foreach word,$(MAKEOVERRIDES),$(if $(findstring =,$(word)),$(word)))
unknown := $(filter-out $(addsuffix =%,SCALE SEEDS WORKERS LAUNCHER RESULTS TUNE TABLE PYTHON TORCH TAID_CACHE TAID_MIRROR TAID_HUB TAID_JUDGE HF_HUB_OFFLINE DRY HASHES MODEL JUDGE PRICE),$(given))
counted = $(shell printf %s '$(subst ','\'',$($(1)))' | grep -xE '[1-9][0-9]*')
$(if $(unknown),$(error $(unknown): no such setting; there are SCALE, SEEDS, WORKERS, LAUNCHER, RESULTS, TUNE, TABLE, MODEL, JUDGE, PRICE, DRY, HASHES, PYTHON and TORCH; of the environment TAID_CACHE, TAID_MIRROR, TAID_HUB, TAID_JUDGE and HF_HUB_OFFLINE))
$(foreach n,SEEDS WORKERS,$(if $(call counted,$(n)),,$(error $(n)=$($(n)): a whole number from 1 is needed)))
$(if $(filter-out smoke cpu gpu paper,$(SCALE))$(filter-out 1,$(words $(SCALE))),$(error SCALE=$(SCALE): one of smoke, cpu, gpu (tables 1, 2, 3 and 6, bench, cost) or paper (tables 1 to 8)))
$(if $(filter-out 1,$(words $(RESULTS))),$(error RESULTS=$(RESULTS): one folder without blanks in its name))
$(if $(filter mt-bench,$(MAKECMDGOALS)),$(if $(MODEL),,$(error mt-bench needs MODEL=folder, the student to be judged)))
ifeq ($(SCALE),smoke)
$(if $(filter results results/%,$(subst $(CURDIR)/,,$(abspath $(RESULTS)))),$(error SCALE=smoke RESULTS=$(RESULTS): smoke rows mean nothing and never go among the reference rows))
endif
$(if $(filter-out any,$(TORCH)),$(error TORCH=$(TORCH): any takes the PyTorch for CUDA also where no NVIDIA GPU is))
ifneq ($(TUNE),)
$(if $(filter-out decide table1 table2 table6,$(MAKECMDGOALS))$(filter paper gpu,$(SCALE)),$(error TUNE=$(TUNE): decide, table1, table2 and table6 alone, at smoke or cpu, search their rates again))
endif
ifeq ($(MAKELEVEL),0)
HERE = bench cost theory mode-collapse verify mt-bench
$(foreach n,DRY LAUNCHER,$(if $($(n)),$(foreach item,$(filter $(HERE),$(MAKECMDGOALS)),$(error $(n)=$($(n)): $(item) runs here and at once, it takes no $(n)))))
endif
ifeq ($(origin SEEDS)$(MAKELEVEL),command line0)
$(if $(filter $(SEEDLESS),$(MAKECMDGOALS)),$(if $(filter $(SEEDED),$(MAKECMDGOALS)),,$(error SEEDS=$(SEEDS): $(MAKECMDGOALS) takes no seeds)))
endif

# The paper's items, each after those it takes something from.
PAPER = table1 table2 table3 table4 table5 table6 table7 table8 figure1 figure2 figure3 cost
# at smoke no committed rows tell the studies around Table 1 its rates
ifeq ($(SCALE),smoke)
PAPER := table1-protocol-1 $(PAPER)
endif

PY = .venv/bin/python
# a smoke run leaves the committed notebooks alone
NOTEBOOK = $(if $(filter smoke,$(SCALE)),@: skipped,.venv/bin/jupyter-execute --inplace)
STAMP = .venv/.installed
# a study's script, then its page
SCRIPT = $(PY) paper_experiments/$(1).py --scale $(SCALE)$(2) --workers $(WORKERS) --results $(RESULTS)$(if $(LAUNCHER), --launcher $(LAUNCHER))$(if $(DRY), --dry-run)
STUDY = $(call SCRIPT,$(1), --seeds $(SEEDS))
# learning rates: the committed ones, or searched again
TUNED = $(if $(TUNE),--tune)
PAGE = $(if $(DRY),@: no page of,$(PY) -m analysis) $(1) --scale $(SCALE) --results $(RESULTS)

.DEFAULT_GOAL := help
.PHONY: help setup data lock audit lab lint test test-slow fuzz kill all plan what-it-takes $(SEEDED) $(SEEDLESS) mt-bench verify claims pages report clean FORCE

help: ## this list
	@echo "make TARGET [SCALE=smoke|cpu|gpu|paper] [SEEDS=n] [WORKERS=2] [RESULTS=folder] [DRY=1] [TUNE=1] [LAUNCHER=slurm|ray]"
	@echo
	@printf "  %-15s %-58s %s\n" target "what" "minutes on two cores (smoke / cpu)"
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\) | \(.*\)/  \1|\2|\3/p; s/^\([a-z0-9-]*\):.*## \([^|]*\)$$/  \1|\2|/p' $(MAKEFILE_LIST) \
	  | awk -F'|' '{ printf "%-17s %-58s %s\n", $$1, $$2, $$3 }'

setup: $(STAMP) data ## virtual environment, pinned packages, texts fetched and checked | 3

# a Python named by hand is looked at each time
$(STAMP): requirements.txt pyproject.toml $(if $(filter command line,$(origin PYTHON)),FORCE)
	@HASHES=$(HASHES) TORCH=$(TORCH) .ci/setup $(PYTHON)

data: $(STAMP) ## fetch the public texts and check their digests | 0.2
	$(PY) -m taid.studies.sources

lock: $(STAMP) ## requirements.lock anew: the digests that `make setup HASHES=1` asks of every file | 1
	.ci/lock

audit: $(STAMP) ## known weaknesses of the pinned packages, by pip-audit and the registry's own list | 1
	@[ -x .venv/audit/bin/pip-audit ] || { $(PY) -m venv .venv/audit && \
	  .venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; }
	.venv/audit/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps -r requirements.txt

lab: setup ## JupyterLab on the notebooks; mode_collapse.ipynb has sliders
	$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/mode_collapse.ipynb

lint: $(STAMP) ## format, lint and types, as .ci/run has them | 1
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

test test-slow: export OMP_NUM_THREADS = 1

test: setup ## the test suite | 5
	$(PY) -m pytest -q -m alone
	$(PY) -m pytest -q -m 'not slow and not alone' -n 2 --dist loadfile

test-slow: setup ## the slow tests: notebooks, a browser, thousand-example properties, kills | 10
	$(PY) -m pytest -q -m slow -n 2 --dist loadfile

fuzz: export TRITON_INTERPRET = 1
fuzz kill: export OMP_NUM_THREADS = 1

fuzz: setup ## 10,000 random cases of every loss on every engine against fp64 | 1
	$(PY) tests/test_fuzz.py 10000

kill: setup ## kill -9 at 50 random points of two processes in one folder, each run again | 1
	$(PY) tests/test_kills.py 50

all: setup plan ## every item of the paper, one after the other; what is finished is skipped
	@for item in $(if $(DRY),$(filter-out cost,$(PAPER)),$(PAPER)); do \
	  echo; echo "make $$item"; $(MAKE) --no-print-directory $$item || exit 1; done

plan: ## the minutes of each item that `make all` would run, and the hours of all
	@for item in $(PAPER); do sed -n "s/^$$item:.*## .* | /$$item|/p" $(MAKEFILE_LIST); done | awk -F '[|]' -v scale=$(SCALE) ' \
	  { split($$2, minutes, " / "); text = minutes[scale == "smoke" ? 1 : 2]; sum += text + 0; \
	    printf "  %-10s %s\n", $$1, text } \
	  END { printf "minutes on two cores at the scale %s, %.1f hours in all; what is finished is skipped\n", scale, sum / 60 }'

decide: setup ## does TAID beat KL? the paper's updates and α, a rule written before the run | 3 / 300 for twelve seeds
	$(call STUDY,17_decide) $(TUNED)
	$(call PAGE,decide)

table1: setup ## Table 1: instruction tuning, 12 methods, 3 pairs; TUNE=1 searches rates again | 2 / 25 for one seed from nothing
	$(call STUDY,$(if $(filter paper gpu,$(SCALE)),01_table1_instruction_tuning,01_table1_every_answer)) $(TUNED)
	$(call PAGE,$(if $(filter paper gpu,$(SCALE)),table1,table1_tuned))

table1-protocol-1: setup ## Table 1 as first run, and what the studies around it start from | 1 / 40 for one seed, 15 each further
	$(call STUDY,01_table1_instruction_tuning)
	$(call PAGE,table1)

table2: setup ## Table 2: continued pre-training from SmolLM2-135M, eight methods, lm-eval | 1 / 6 once, 31 a seed
	$(call STUDY,$(if $(filter paper gpu,$(SCALE)),02_table2_continued_pretraining,02_table2_tuned_pretraining)) $(TUNED)
	$(call PAGE,table2)

table2-protocol-1: setup ## Table 2 as first run, and the speed of a teacher's cache | 1 / 30 once, 50 a seed
	$(call STUDY,02_table2_continued_pretraining)
	$(call PAGE,table2)

table3: setup ## Table 3: head and tail mass of Table 1's students | 0.3 / 3 after table1-protocol-1
	$(call STUDY,03_table3_probability_mass)
	$(call PAGE,table3)

table4: setup ## Tables 4 and 9: TAID-LLM, two arms, the reviewers' controls, a student with its card | 1 / 30 for three seeds
	$(call STUDY,04_table4_taid_llm)
	$(call PAGE,table4)

table5: setup ## Tables 5, 10: an image-text pair of InternVL, eight families of questions | 0.5 / 10 for three seeds
	$(call STUDY,05_table5_image_text)
	$(call PAGE,table5)

table6: setup ## Table 6, Figure 2 right: the capacity gap, four teachers of every seed's own | 2 / 12 a seed
	$(call STUDY,$(if $(filter paper gpu,$(SCALE)),06_table6_capacity_gap,06_table6_drawn_teachers)) $(TUNED)
	$(call PAGE,$(if $(filter paper gpu,$(SCALE)),table6,table6_tuned))

table6-protocol-1: setup ## Table 6 as first run, one teacher of each size | 1 / 45 for five seeds
	$(call STUDY,06_table6_capacity_gap)
	$(call PAGE,table6)

table7: setup ## Table 7: image classification, five methods, six pairs for small images | 1 / 15 for three seeds
	$(call STUDY,07_table7_cifar100)
	$(call PAGE,table7)

table8: setup ## Table 8: image classification, ResNet34 → 18 and ResNet50 → MobileNet-V1 | 0.5 / 5 for three seeds
	$(call STUDY,08_table8_imagenet)
	$(call PAGE,table8)

figure1: setup ## Figure 1: KL's fixed teacher, TAID's moving bridge | 0.5 / 3 for four seeds after table1-protocol-1
	$(call STUDY,16_figure1_moving_bridge)
	$(call PAGE,figure1)

figure2: setup ## Figure 2 left and middle: t over training, the objective and its variance | 0.5 / 6 for four seeds after table1-protocol-1
	$(call STUDY,09_figure2_interpolation)
	$(call PAGE,figure2)

figure3: setup ## Figure 3: entropy of teachers of images and of language | 0.3 / 1 after table1-protocol-1, table7, table8
	$(call SCRIPT,10_figure3_entropy)
	$(call PAGE,figure3)

adaptivity: setup ## is the adaptive update adaptive? floor, momentum, replayed curves | 1 / 4 for four seeds after table1-protocol-1
	$(call STUDY,14_adaptivity)
	$(call PAGE,adaptivity)

ablations: setup ## TAID's parts, one by one, around Table 1's first pair | 1 / 8 for one seed after table1-protocol-1
	$(call STUDY,15_ablations)
	$(call PAGE,ablations)

departures: setup ## the official code's baselines beside the methods they name | 1 / 15 for four seeds after table1-protocol-1
	$(call STUDY,18_departures)
	$(call PAGE,departures)

bench: setup ## speed and memory of every loss, beside the official code; others after `python -m benchmarks peers`; SCALE=gpu on a GPU | 1 / 13
	$(PY) -m benchmarks losses --scale $(SCALE) --results $(RESULTS)
	$(call PAGE,speed)

what-it-takes: setup ## the paper's own scale before it costs money: memory, FLOPs, hours (docs/paper_scale.md) | 0.3
	$(PY) paper_experiments/00_what_it_takes.py

cost: setup ## the paper's cost claim: TAID, KL, DistiLLM, GKD, seconds per step | 0.6 / 5
	$(PY) -m benchmarks cost --scale $(SCALE) --results $(RESULTS)
	$(call PAGE,speed)

rounds: setup ## repeated rounds with language models, beside the theory | 1 / 13 for three seeds after table1-protocol-1
	$(call STUDY,13_rounds)
	$(call PAGE,rounds)

theory: setup ## the theorem, the sharp bound, phase diagram; then the notebook | 0.1 / 2
	$(PY) paper_experiments/11_theory.py --scale $(SCALE) --results $(RESULTS)
	$(NOTEBOOK) notebooks/theory.ipynb

mode-collapse: setup ## mixtures of Gaussians: averaging and collapse; then the notebook | 0.3 / 8
	$(PY) paper_experiments/12_mode_collapse.py --scale $(SCALE) --results $(RESULTS)
	$(NOTEBOOK) notebooks/mode_collapse.ipynb

mt-bench: setup ## MT-Bench of MODEL=folder by JUDGE=gpt-4, PRICE="in out" for a million tokens (docs/mt_bench.md)
	$(PY) -m taid.studies.mt_bench --model $(MODEL) --judge $(JUDGE) $(if $(PRICE),--price $(PRICE))

verify: setup ## a committed cell from scratch: how far from its row? TABLE=table1, table1_tuned, table6 or table6_tuned | 10
	$(PY) -m taid.studies.verify --table $(TABLE)

claims: setup ## the paper's claims, judged on the committed rows | 0.1
	$(PY) -m analysis claims --results results

pages: setup ## render the committed rows in results/ again | 0.5
	$(PY) -m analysis report --results results

report: setup ## one site of all results, notebooks, how-tos and the reference: site/index.html | 0.5
	$(PY) -m analysis.site

clean: ## remove .cache, with its trained models, and what was built; keep all rows
	rm -rf .cache build *.egg-info .pytest_cache
