"""`python -m crystalforge.cli`."""

from crystalforge.cli import main

main()
