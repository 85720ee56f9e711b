"""``python -m npti_export``: the command line, for torchrun and accelerate launch, which start a module."""

from npti_export.cli import main

if __name__ == "__main__":
    main()
