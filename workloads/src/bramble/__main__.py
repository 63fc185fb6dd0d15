"""`python -m bramble`."""

from bramble.cli import main

if __name__ == "__main__":
    main()
