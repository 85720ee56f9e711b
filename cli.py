"""Runs the command line from a checkout without installing the package: ``python cli.py --help``."""

from npti_export.cli import main

if __name__ == "__main__":
    main()
