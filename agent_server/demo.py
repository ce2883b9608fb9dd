"""The command `agent-server demo`: a server of its own, one task, and what happens, on the terminal.

With a provider's key in the environment (or AGENT_BASE_URL, or AGENT_PROVIDER) the task runs on that provider's model; without
one it plays a recorded conversation through the same server, loop and tools, and says so.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent_server.gateway import ModelError
from agent_server.gateway.litellm_targets import target
from agent_server.gateway.providers import ProviderSettings
from agent_server.gateway.replay import load
from agent_server.gateway.route import REPLAY
from agent_server.settings import new_token

START_SECONDS = 30.0

MODELS = {
    "openrouter": "anthropic/claude-sonnet-4.5",
    "anthropic": "claude-sonnet-4-5",
    "openai": "gpt-5",
    "gemini": "gemini-2.5-pro",
    "mistral": "devstral-medium-latest",
    "groq": "openai/gpt-oss-120b",
    "deepseek": "deepseek-chat",
    "xai": "grok-4",
    "together": "openai/gpt-oss-120b",
    "fireworks": "accounts/fireworks/models/gpt-oss-120b",
    "cerebras": "gpt-oss-120b",
    "moonshot": "kimi-k2-0905-preview",
}
"""A model that calls tools, of each provider whose key means that it is to be used: cloud accounts' credentials are there for
other things too, and their models have names of their own, so that they are asked for with AGENT_PROVIDER and AGENT_MODEL."""

DIM, BOLD, RED, GREEN, RESET = ("\033[2m", "\033[1m", "\033[31m", "\033[32m", "\033[0m") if sys.stdout.isatty() else ("",) * 5


def main() -> int:
    """Runs the demo. Gives 0 when the task completed."""
    folder = Path(tempfile.mkdtemp(prefix="agent-server-demo-"))
    environ = {**os.environ, "WORKSPACE_DIR": str(folder / "workspace"), "DATA_DIR": str(folder / "data"), "PORT": "0", "HOST": "127.0.0.1"}
    environ["AGENT_SERVER_TOKEN"] = token = new_token()
    environ |= chosen(os.environ)
    log = (folder / "server.log").open("w+")
    began = time.monotonic()
    server = subprocess.Popen([sys.executable, "-P", "-m", "agent_server", "serve"], env=environ, stderr=log)
    try:
        demo = _Demo(_wait_for_port(Path(log.name), server), token)
        demo.call("/health")
        print(f"{DIM}server up after {time.monotonic() - began:.2f} s, workspace {folder / 'workspace'}{RESET}")
        if environ["AGENT_PROVIDER"] == REPLAY:
            print("Playing a recorded conversation: no key of a provider is set. Tools and files are real.\n")
        else:
            way = "AGENT_BASE_URL" if os.environ.get("AGENT_BASE_URL") else environ["AGENT_PROVIDER"]
            print(f"On {environ['AGENT_MODEL']} by way of {way}.\n")
        return demo.run(load("demo").prompt)
    except (OSError, RuntimeError) as error:
        print(f"{RED}The demo failed: {error}{RESET}\nThe server's log is {log.name}", file=sys.stderr)
        return 1
    finally:
        server.terminate()
        server.wait()


def chosen(environ: Mapping[str, str]) -> dict[str, str]:
    """Gives the AGENT_PROVIDER and AGENT_MODEL of the demo: those that are named, else the first whose key is there, else a recording.

    Errors: SystemExit where the provider is named and has no model here, and none is named.
    """
    named = {name: environ[name] for name in ("AGENT_PROVIDER", "AGENT_MODEL") if environ.get(name, "").strip()}
    provider = named.get("AGENT_PROVIDER")
    if provider is None and environ.get("AGENT_BASE_URL", "").strip():
        provider = "openrouter"  # the endpoint takes its place
    if provider is None:
        provider = next((name for name in MODELS if _has_key(name, environ)), None)
    if provider is None or provider == REPLAY:
        return {"AGENT_PROVIDER": REPLAY, "AGENT_MODEL": "demo", **(named if provider else {})}
    if provider not in MODELS and "AGENT_MODEL" not in named:
        raise SystemExit(f"Set AGENT_MODEL to the name of a model of {provider}.")
    return {"AGENT_PROVIDER": provider, "AGENT_MODEL": MODELS.get(provider, ""), **named}


def _has_key(provider: str, environ: Mapping[str, str]) -> bool:
    try:
        target(provider, "any", ProviderSettings(environ=environ))
    except ModelError:
        return False
    return True


def _wait_for_port(log: Path, server: "subprocess.Popen[bytes]") -> int:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        if found := re.search(r" on http://127\.0\.0\.1:(\d+),", log.read_text()):
            return int(found[1])
        time.sleep(0.02)
    raise RuntimeError(f"the server did not start: {log.read_text().strip()}")


class _Demo:
    def __init__(self, port: int, token: str) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._token = token
        self._is_in_line = False

    def _open(self, path: str, body: Any = None, accept: str = "application/json") -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self._base + path, data, {"Authorization": f"Bearer {self._token}", "Accept": accept})  # noqa: S310
        return urllib.request.urlopen(request)  # noqa: S310  # our own server on loopback

    def call(self, path: str) -> Any:
        with self._open(path) as response:
            return json.load(response)

    def run(self, prompt: str) -> int:
        print(f"{BOLD}Task:{RESET} {prompt}\n")
        last: dict[str, Any] = {}
        with self._open("/run", {"prompt": prompt}, "text/event-stream") as response:
            for last in _events(response):
                self._show(last)
        changes = self.call("/changes?diff=false")["changes"]
        print(f"\n{BOLD}GET /changes{RESET}")
        for change in changes:
            print(f"  {change['status']:9} {change['path']}  {GREEN}+{change['additions']}{RESET} {RED}-{change['deletions']}{RESET}")
        return 0 if last.get("type") == "task.completed" else 1

    def _show(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "message.delta":
            print(event["delta"], end="", flush=True)
            self._is_in_line = True
            return
        if self._is_in_line and kind != "message.delta":
            print()
            self._is_in_line = False
        if kind == "tool.started":
            print(f"{BOLD}▸ {event['message']}{RESET}")
        elif kind == "tool.finished":
            lines = event["output"].strip().splitlines()
            print(
                "".join(f"{DIM}  {line[:160]}{RESET}\n" for line in lines[:6])
                + (f"{DIM}  … {len(lines) - 6} more lines{RESET}\n" if len(lines) > 6 else "")
            )
        elif kind == "task.failed":
            print(f"{RED}{event['message']}{RESET}")
        elif kind == "task.completed":
            usage = event["usage"]
            cost = f", {usage['cost']:.4f} USD" if usage["cost"] is not None else ""
            print(f"\n{GREEN}completed{RESET} in {event['steps']} steps, {usage['total_tokens']} tokens{cost}")


def _events(response: Any) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
