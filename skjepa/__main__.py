"""`python -m skjepa`."""

from skjepa.cli import main

if __name__ == "__main__":
    main()
