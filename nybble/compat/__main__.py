"""``python -m nybble.compat PROGRAM ...`` runs a program with the old modules served by nybble."""

from __future__ import annotations

import runpy
import sys

from nybble.compat import MODULES, install


def main() -> None:
    """Run the program named by the first argument, or by ``-m MODULE``, as Python itself would."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help") or arguments == ["-m"]:
        print(
            f"usage: python -m nybble.compat [-m MODULE | PROGRAM] ...\n\nRuns it with {', '.join(MODULES)} served by nybble."
        )
        raise SystemExit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
    install()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
