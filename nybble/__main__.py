"""``python -m nybble`` is the command ``nybble``."""

from nybble.cli import main

if __name__ == "__main__":
    main(prog_name="nybble")
