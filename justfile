# The recipes that people, pre-commit and CI share. `pip install -e '.[dev]'` brings `just` itself.

# lint, formatting, types, import direction
check:
    ruff check .
    ruff format --check .
    mypy
    lint-imports

# the README's test command; a quarter of the time of two processes is waiting, for what a test has started. Each takes
# a part of the files, whose models and folders are then made once, and the rest of another's when it has none left
test:
    python -m pytest -n 3 --dist worksteal

# everything, the slow tests too
test-all:
    python -m pytest -n 3 --dist worksteal -m "slow or not slow"

# the main job in short, as a newcomer runs it
smoke:
    kdad-bench doctor
    kdad-bench run --method stfpm --method rd4ad --seeds 1 --steps 5 --out "$(mktemp -d)"

# the kernel microbenchmarks, each result first compared with the oracle
bench:
    kdad-bench kernels bench --check

# metrics and data benchmarks (pip install -e '.[bench]')
bench-metrics:
    python benchmarks/metrics.py

# what needs a GPU: correctness first, then the tables
gpu:
    bash benchmarks/gpu/run.sh

# the leaderboard of a results folder
table results="results":
    kdad-bench leaderboard {{results}}
