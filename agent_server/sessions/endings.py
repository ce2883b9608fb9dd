"""How tasks end that do not complete: what a client is told, and the event that says it."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from agent_server.errors import AgentServerError, Conflict, TaskTimeout
from agent_server.events import Draft
from agent_server.sessions.tasks import Task

logger = logging.getLogger(__name__)


class GivenUp(AgentServerError):
    """A task that was resumed too often: it may be what ends the server."""


def failure(task: Task, error: BaseException) -> tuple[AgentServerError, str]:
    """Gives what a client is told of a task's end, and its phase."""
    if isinstance(error, asyncio.CancelledError):
        return cancelled(task.task_id), "cancelled"
    if isinstance(error, TaskTimeout):
        return error, "timed_out"
    if isinstance(error, GivenUp):
        return error, "interrupted"
    if isinstance(error, AgentServerError):
        return error, "done"
    logger.error("%s failed", task.task_id, exc_info=error)
    return AgentServerError(f"The server failed on this task ({type(error).__name__}); its log has the details."), "done"


def cancelled(task_id: str) -> AgentServerError:
    return Conflict("The task was cancelled.", code="TASK_CANCELLED", details={"taskId": task_id})


def failed(
    task: Task, error: AgentServerError, phase: str, changes: Sequence[Mapping[str, Any]] = (), response: str | None = None
) -> Draft:
    """Gives the event that ends a task with an error, and with what it has reached where that is told."""
    described = {"code": error.code, "message": error.message, "details": {**error.details, "taskId": task.task_id}}
    done = {"usage": task.usage, "steps": task.steps, "toolsUsed": task.tools_used, "changes": list(changes)}
    answer = {"response": response} if response is not None else {}
    data = {**answer, "error": described, "status": error.status, "phase": phase, **done}
    return Draft("task.failed", data, task.session_id, task.task_id, sync=True)
