"""Runs the command line: `python -m ebm_from_clf`."""

from .cli import main

main()
