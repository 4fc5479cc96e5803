"""The command line as `python -m veca`, which `torchrun -m veca` needs."""

from .cli import main

if __name__ == "__main__":
    main()
