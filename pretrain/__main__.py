"""`python -m pretrain`."""

from pretrain.cli import main

main()
