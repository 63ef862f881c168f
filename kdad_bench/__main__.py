"""`python -m kdad_bench`: the command line from a bare checkout, nothing installed."""

from kdad_bench.cli import main

main()
