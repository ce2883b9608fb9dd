"""Starts the server with the tools of the folder `tools/` beside this file as well: what the conformance suite asks for by name.

They come in the way every tool does: the loader finds them in the package `tools`, to whose path their folder is added.
"""

import sys
from pathlib import Path

import tools
from agent_server.__main__ import main

tools.__path__.append(str(Path(__file__).with_name("tools")))
sys.argv[1:] = ["serve"]
sys.exit(main())
