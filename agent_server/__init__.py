"""agent-server: runs LLM tool-use tasks against the workspace of one VM, over HTTP."""

__version__ = "0.1.0"
