"""`python -m frtool`."""

from frtool.cli import main

if __name__ == "__main__":
    main()
