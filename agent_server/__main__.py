"""The command `agent-server`."""

import gc
import os
import sys


def leave_out_the_workspace() -> None:
    """Takes the current folder and PYTHONPATH out of the import path: a workspace may have its own `tools` or `integrations`."""
    ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    foreign = {os.path.realpath(path) for path in ("", *os.environ.get("PYTHONPATH", "").split(os.pathsep))} - {ours}
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) not in foreign]


def main() -> int:
    """Runs a subcommand and gives the exit code."""
    leave_out_the_workspace()
    command = sys.argv[1] if len(sys.argv) > 1 else "help"
    if command == "serve":
        gc.disable()  # until all is imported: what is made until then stays, and is not looked through again and again
        from agent_server.serve import main as serve  # not before the import path is safe

        return serve()
    if command == "demo":
        from agent_server.demo import main as demo  # as above

        return demo()
    if command in ("version", "--version"):
        from agent_server import __version__  # as above

        print(__version__)
        return 0
    print(HELP, file=sys.stdout if command in ("help", "--help", "-h") else sys.stderr)
    return 0 if command in ("help", "--help", "-h") else 2


HELP = """\
usage: agent-server COMMAND

  serve      run the server; its settings come from the environment (docs/configuration.md)
  demo       run one task in a folder of its own, and show what happens
  version    print the version
"""

if __name__ == "__main__":
    sys.exit(main())
