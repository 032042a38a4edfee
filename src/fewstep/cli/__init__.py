"""The command `fewstep`. One file, one command: its docstring is its help, its `run(arguments)` does the work."""

import importlib
import os
import pkgutil
import sys
import traceback

from fewstep import __version__
from fewstep.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0 only on success. A user's mistake is one line; `--debug` shows the traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    commands = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    try:
        if not argv or argv[0] in ("-h", "--help"):
            sys.stdout.write(_usage(commands))
            return 0
        if argv[0] == "--version":
            sys.stdout.write(f"fewstep {__version__}\n")
            return 0
        if argv[0] not in commands:
            raise UserError(f"no command is called {argv[0]!r}: there are {', '.join(commands)}")
        return importlib.import_module(f"{__name__}.{argv[0]}").run(argv[1:])
    except BrokenPipeError:  # the reader of our output has had enough, as in `fewstep recipes | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError) as error:
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"fewstep: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("fewstep: interrupted\n")
        return 130


def _usage(commands: list[str]) -> str:
    lines = ["usage: fewstep COMMAND ... (fewstep COMMAND --help tells more; --debug shows tracebacks)", ""]
    for name in commands:
        document = importlib.import_module(f"{__name__}.{name}").__doc__ or ""
        lines.append(f"  {name:<12}{document.splitlines()[0]}")
    start = "fewstep train digits-stmd --out runs/digits, then fewstep sample runs/digits"
    return "\n".join([*lines, "", f"Start with: {start}", ""])
