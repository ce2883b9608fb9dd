"""The command that the conformance suite starts: has `conform.py`, at the socket of the first argument, go through the scenario."""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    asked = {"url": sys.argv[2], "scenario": os.environ["MCP_CONFORMANCE_SCENARIO"], "context": context}
    connection.sendall(json.dumps(asked).encode() + b"\n")
    with connection.makefile() as answer:
        wrong = json.loads(answer.readline())
print(*wrong, sep="\n", file=sys.stderr)
sys.exit(1 if wrong else 0)
