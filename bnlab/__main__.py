"""The program `bnlab`, as `python -m bnlab`."""

from bnlab.cli.main import main

if __name__ == "__main__":
    main()
