"""Pieces of scripts for the fake provider."""

from typing import Any

LINE = "echo {step} >> {prompt}.txt"
"""A command whose effect is one line, and tells the call by it."""

STALLED = {"text": "I begin.", "cut_after": 3, "stall": 60}
"""Says two of its three pieces, and then nothing for a minute."""


def bash(command: str) -> dict[str, Any]:
    """A call of bash."""
    return {"name": "bash", "arguments": {"command": command}}


def prompts(**turns: dict[str, Any]) -> dict[str, Any]:
    """Plays for each prompt a turn of its own, so that a task and its subagents are told from one another."""
    return {"script": "prompts", "by_prompt": {name.replace("_", " "): turn for name, turn in turns.items()}}


def task(prompt: str, kind: str = "general", **more: Any) -> dict[str, Any]:
    """A call of task."""
    return {"name": "task", "arguments": {"description": f"Do {prompt}", "prompt": prompt, "subagent_type": kind, **more}}


def plan(*steps: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Makes these calls, one list for each answer, and then says Done, for every prompt."""
    return {"script": "plan", "plan": list(steps), "saying": "On with it.", "text": "Done.", **more}
