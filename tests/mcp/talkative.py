"""An MCP server over stdio that does what its argument says, written out: it starts in a fraction of what the SDK takes.

It notes in the file `notes` of its folder that it began, what it was asked, and what it was told.
"""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

MODE = sys.argv[1] if len(sys.argv) > 1 else ""
NAMES = sys.argv[2].split(",") if len(sys.argv) > 2 else ["echo"]
STRING = {"type": "object", "properties": {"text": {"type": "string"}}}
HINTS = {"again": {"idempotentHint": True}, "look": {"readOnlyHint": True}, "glance": {"readOnlyHint": True}}
BARE = {"type": "object"}
EVIL = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(x+x+)+y$"}}}
ODD = [
    5,
    {"inputSchema": BARE},
    {"name": "array", "inputSchema": {"type": "array"}},
    {"name": "bare", "inputSchema": BARE},
    {"name": "draft", "inputSchema": {**BARE, "properties": {"a": {"type": "number", "minimum": 0, "exclusiveMinimum": True}}}},
    {"name": "fields", "description": 7, "annotations": {"readOnlyHint": "maybe"}, "outputSchema": {"type": "array"}},
    {"name": "ours", "inputSchema": {**BARE, "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}},
    {"name": "pattern", "inputSchema": BARE, "outputSchema": EVIL},
    {"name": "theirs", "inputSchema": {**BARE, "properties": {"a": {"$ref": "http://127.0.0.1:1/schema"}}}},
    {"name": "untyped", "inputSchema": {"properties": {"a": {"type": "string"}}}},
]
"""Tools as servers should not list them: with what is no schema, or none for arguments, with a reference to elsewhere, or no tools."""

tools: list[Any] = [
    {"name": name, "description": f"Does {name}.", "inputSchema": STRING, "annotations": HINTS.get(name, {})} for name in NAMES
]


def note(*words: object) -> None:
    with open("notes", "a", encoding="utf-8") as file:
        print(MODE, *words, file=file)


def say(**message: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def text(said: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}]}


def call(name: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """What a tool of this name does."""
    note("call", name)
    said = given.get("text", "")
    if name == "leave":
        return text("bye")
    if name in ("die", "again", "look") and not os.path.exists(f"died-{name}"):
        open(f"died-{name}", "w").close()
        os._exit(1)
    if name == "die-always":
        os._exit(1)
    if name == "spawn":
        note("child", subprocess.Popen(["sleep", "300"], start_new_session=True).pid)
    if name == "slow":
        time.sleep(1.4)
    if name == "stick":
        time.sleep(600)
    if name == "grow":
        tools.append({"name": said, "description": "", "inputSchema": STRING})
        say(method="notifications/tools/list_changed")
    if name == "long":
        return text("line\n" * 100_000)
    if name == "secret":
        return text(os.environ["MY_TOKEN"])
    if name == "variables":
        return text(" ".join(sorted(os.environ)))
    if name == "picture":
        return {"content": [{"type": "image", "mimeType": "image/png", "data": "AAAA"}, {"type": "text", "text": "seen"}]}
    if name == "cut":
        return text("half a \ud83d")
    if name == "null":
        return None
    if name == "over":
        return text("x" * (33 << 20))
    if name == "pattern":
        return {"content": [], "structuredContent": {"a": "x" * 60}}
    if name == "structure":
        return {"content": [], "structuredContent": {"a": 1}}
    return text(f"{MODE}:{said}")


def begin() -> None:
    note("begin", os.getpid())
    if MODE == "exits":
        print("the reason is on stderr", file=sys.stderr)
        sys.exit(3)
    if MODE == "hangs" or (MODE == "late" and not os.path.exists("ready")):
        time.sleep(600)
    if MODE == "floods-stderr":
        subprocess.Popen(["yes", "x" * 1000], stdout=sys.stderr)
    if MODE == "garbage":
        sys.stdout.buffer.write(b"hello\n\xff\xfe\n{not json\n[]\n\n")
        sys.stdout.flush()
    if MODE == "endless":
        subprocess.run(["yes", "x"])
    if MODE == "one-line":
        subprocess.run("tr '\\0' '{' < /dev/zero", shell=True)
    if MODE == "daemon":
        child = subprocess.Popen(["sleep", "300"], start_new_session=True)
        note("child", child.pid)
        sys.exit(0)
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def main() -> None:
    begin()
    for line in sys.stdin:
        asked = json.loads(line)
        method, given = asked["method"], asked.get("params") or {}
        note(method)
        if "id" not in asked:
            continue
        if method == "initialize":
            answer: dict[str, Any] | None = {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "t", "version": "1"},
            }
        elif method == "tools/list" and MODE != "no-tools":
            if MODE == "hangs-listing":
                time.sleep(600)
            answer = {"tools": ODD if MODE == "odd-list" else tools}
        elif method == "tools/call" and given["name"] == "refuse":
            note("call", "refuse")
            say(id=asked["id"], error={"code": -32000, "message": "Not today."})
            continue
        elif method == "tools/call":
            answer = call(given["name"], given.get("arguments") or {})
        else:
            say(id=asked["id"], error={"code": -32601, "message": "no such method"})
            continue
        say(id=asked["id"], result=answer)
        if method == "tools/call" and given["name"] == "leave":
            sys.exit(0)
    if MODE == "stubborn":
        time.sleep(600)


main()
