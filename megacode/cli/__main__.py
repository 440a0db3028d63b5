"""`python -m megacode.cli`: how ranks are started."""

from megacode.cli import main

if __name__ == "__main__":
    main()
