"""Run the command line by ``python -m skjepa``."""

from skjepa.cli.app import main

if __name__ == "__main__":
    main()
