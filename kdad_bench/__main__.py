"""`python -m kdad_bench`: the command line from a bare checkout, nothing installed."""

from kdad_bench.harness.cli import main

main()
