"""The errors a client can be told of.

    AgentServerError                  500 INTERNAL
    ├── InvalidRequest (ValueError)   400 INVALID_REQUEST, details.path names the field
    ├── Unauthorized                  401 UNAUTHORIZED
    ├── Forbidden (PermissionError)   403 FORBIDDEN
    ├── NotFound (LookupError)        404 NOT_FOUND, or the code of what was looked for
    ├── Conflict                      409 CONFLICT, TASK_CANCELLED
    │   └── InstanceNotRunning        409 INSTANCE_NOT_RUNNING, with current_status
    ├── PayloadTooLarge               413 PAYLOAD_TOO_LARGE
    ├── Unprocessable                 422 IDEMPOTENCY_MISMATCH, RESOURCE_LIMIT_EXCEEDED
    ├── TooManyRequests               429 TOO_MANY_REQUESTS, with Retry-After
    ├── UpstreamError (ConnectionError) 502 UPSTREAM_ERROR
    ├── Draining                      503 DRAINING, with Retry-After
    ├── ControlPlaneOnly              501 CONTROL_PLANE_ONLY
    ├── TaskTimeout (TimeoutError)    504 TASK_TIMEOUT
    └── gateway.ModelError            502 MODEL_ERROR

`SettingsError` stands apart: it stops the start, and no client ever sees it.
"""

from collections.abc import Mapping
from typing import Any


class AgentServerError(Exception):
    """The base of all: `code` and `status` are the wire's, the message is one sentence that says what to do."""

    code = "INTERNAL"
    status = 500
    retry_after: float | None = None
    current_status: str | None = None

    def __init__(self, message: str, *, details: Mapping[str, Any] | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = dict(details or {})
        if code is not None:
            self.code = code


class InvalidRequest(AgentServerError, ValueError):
    code = "INVALID_REQUEST"
    status = 400

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message, details={"path": path})


class Unauthorized(AgentServerError):
    code = "UNAUTHORIZED"
    status = 401


class Forbidden(AgentServerError, PermissionError):
    code = "FORBIDDEN"
    status = 403


class NotFound(AgentServerError, LookupError):
    code = "NOT_FOUND"
    status = 404


class Conflict(AgentServerError):
    code = "CONFLICT"
    status = 409


class InstanceNotRunning(Conflict):
    """The instance was stopped; `current_status` stands beside the code."""

    code = "INSTANCE_NOT_RUNNING"

    def __init__(self, message: str, current_status: str) -> None:
        super().__init__(message)
        self.current_status = current_status


class PayloadTooLarge(AgentServerError):
    code = "PAYLOAD_TOO_LARGE"
    status = 413


class Unprocessable(AgentServerError):
    code = "RESOURCE_LIMIT_EXCEEDED"
    status = 422


class TooManyRequests(AgentServerError):
    code = "TOO_MANY_REQUESTS"
    status = 429
    retry_after: float | None = 1.0


class UpstreamError(AgentServerError, ConnectionError):
    code = "UPSTREAM_ERROR"
    status = 502


class Draining(AgentServerError):
    code = "DRAINING"
    status = 503
    retry_after: float | None = 5.0


class ControlPlaneOnly(AgentServerError, NotImplementedError):
    code = "CONTROL_PLANE_ONLY"
    status = 501


class TaskTimeout(AgentServerError, TimeoutError):
    code = "TASK_TIMEOUT"
    status = 504


class SettingsError(Exception):
    """A setting that cannot be used: names the variable, what came and what is expected."""
