"""`python -m infra.cli` is the `headrace` command."""

from infra.cli import main

main(prog_name="headrace")
