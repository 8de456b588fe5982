# Needs Python 3.10 or newer, make and git. Everything else goes into .venv.
PYTHON ?= python3
PORT ?= 8000

BIN := .venv/bin
ENV := .venv/.ready
HTML := book/_build/html
TEX := latexmk texlive-xetex texlive-latex-extra texlive-fonts-recommended fonts-freefont-otf \
	fonts-dejavu-core
NOTEBOOKS = $(wildcard chapters/*/*.ipynb)

# Idle OpenMP threads sleep: spinning, they take the cores of whoever else works here.
export OMP_WAIT_POLICY := passive

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book pdf tex serve lab refresh test lint types imports unit guard environment notebooks site lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# $(call check,what it is,command): announce it, run it, say how long it took.
check = @echo "==> $(1)"; start=$$(date +%s); \
	{ $(2); } || { echo "==> FAILED: $(1)" >&2; exit 1; }; \
	echo "    $$(($$(date +%s) - start)) s: $(1)"

need = @$(PYTHON) -c $(1) 2>/dev/null || { echo "error: $(2)" >&2; exit 1; }

$(ENV): requirements.lock core/pyproject.toml
	$(call need,'import sys; sys.exit(sys.version_info < (3, 10))',$(PYTHON) is missing or older than 3.10; name another one: make PYTHON=python3.12)
	$(call need,'import venv; import ensurepip',$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv)
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "==> installing requirements.lock into .venv: 2 to 10 minutes the first time"
	@$(BIN)/python -m pip install --requirement requirements.lock
	@$(BIN)/python -m pip install --no-deps --editable core
	@touch $@

book: $(ENV) ## build the book; a warning fails it
	$(call check,book,$(BIN)/jupyter-book build . --path-output book --all -W -n --keep-going)
	@echo "Open file://$(abspath $(HTML))/index.html or run: make serve"

pdf: $(ENV) ## make the book as one PDF (needs latexmk and XeLaTeX)
	@command -v latexmk >/dev/null && command -v xelatex >/dev/null || { echo "error: latexmk or \
	xelatex is missing; on Debian and Ubuntu: apt install $(TEX)" >&2; exit 1; }
	$(call check,LaTeX,$(BIN)/jupyter-book build . --path-output book --builder latex -W -n --keep-going)
	$(call check,PDF,cd book/_build/latex && { latexmk -xelatex -interaction=batchmode \
		-halt-on-error steepest.tex || { grep -A6 '^!' steepest.log; false; }; })
	@echo "Open file://$(abspath book/_build/latex/steepest.pdf)"

tex:
	@echo $(TEX)

serve: ## serve the built book on this machine (PORT=8000)
	@test -f $(HTML)/index.html || { echo "error: no book yet; run: make book" >&2; exit 1; }
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(HTML)

lab: $(ENV) ## open the chapters in JupyterLab
	@$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/chapters

refresh: $(ENV) ## run the chapters whose notebook is stale (ARGS=--all: every one)
	@$(BIN)/python book/refresh.py $(ARGS)

test: lint types imports unit guard environment notebooks book site ## run every check
	@echo "==> every check passed"

lint: $(ENV) ## check style and format
	$(call check,lint,$(BIN)/ruff check . && $(BIN)/ruff format --check .)

types: $(ENV) ## check types
	$(call check,types,$(BIN)/mypy)

imports: $(ENV) ## check the order of the package's rooms
	$(call check,import order,$(BIN)/lint-imports)

unit: $(ENV) ## run unit tests, contract tests and doctests
	$(call check,unit tests and doctests,$(BIN)/pytest tests core/src --ignore=tests/book --doctest-modules -n 2)

guard: $(ENV) ## check notebooks against their sources and the rules for chapters
	$(call check,notebook guard,$(BIN)/pytest tests/book/test_notebooks.py)

environment: $(ENV) ## check that environment.yml, lock and package agree
	$(call check,environment files,$(BIN)/pytest tests/book/test_environment.py)

notebooks: $(ENV) ## run every chapter and compare its checked outputs
	$(call check,chapters,$(if $(NOTEBOOKS),OMP_NUM_THREADS=1 $(BIN)/pytest $(NOTEBOOKS) --nbval-lax \
		--nbval-current-env --nbval-cell-timeout=120 -n 2 --dist loadscope,echo "no notebooks yet"))

site: $(ENV) ## check the built book: links, assets, index of methods, playground, a browser's view
	$(call check,built book,$(BIN)/pytest tests/book \
		--ignore=tests/book/test_notebooks.py --ignore=tests/book/test_environment.py)

lock: $(ENV) ## resolve requirements.lock again (ARGS=--upgrade: newest versions)
	@$(BIN)/python -m pip install "uv>=0.5"
	@cp requirements.lock .venv/lock
	@grep -E '^torch==' requirements.lock | $(BIN)/uv pip compile core/pyproject.toml - \
		--all-extras --universal --python-version 3.10 --no-annotate --no-emit-index-url \
		--no-header --quiet --output-file .venv/lock $(ARGS)
	@{ sed '/^$$/q' requirements.lock; grep -vE '^(cuda|nvidia)-' .venv/lock; } > .venv/lock.new
	@mv .venv/lock.new requirements.lock

clean: ## remove the environment, the built book and all caches
	rm -rf .venv book/_build .*_cache core/build core/dist
	find . -name __pycache__ -prune -exec rm -rf {} +
