"""Which of a session's events stand: those of tasks that were reverted do not, and a restored conversation begins anew."""

from collections.abc import Collection, Iterable

import msgspec

from agent_server.events import Event


def standing(events: Iterable[Event]) -> list[Event]:
    """Leaves out of a session's events those of tasks that were reverted, and puts back those that were unreverted.

    All since the first of these tasks began goes, so that what follows continues a conversation that was there before. A restored
    conversation takes the place of all before it; the copies of its events mean nothing until then.
    """
    kept: list[Event] = []
    cut: list[tuple[str, int, list[Event]]] = []
    copies: dict[str, list[Event]] = {}
    for event in events:
        if event.type == "context.restored":
            copies.setdefault(event.data["restoreId"], []).append(_original(event))
        elif event.type == "session.restored":
            kept, cut = copies.pop(event.data["restoreId"], []), []
        elif event.type == "session.reverted":
            task_ids = frozenset(event.data["taskIds"])
            at = next((at for at, each in enumerate(kept) if each.type == "task.started" and each.task_id in task_ids), len(kept))
            gone = [each for each in kept[at:] if not _waits(each, task_ids)]
            cut.append((event.data["revertId"], at, gone))
            kept[at:] = [each for each in kept[at:] if _waits(each, task_ids)]
        elif event.type == "session.unreverted" and cut and cut[-1][0] == event.data["revertId"]:
            _, at, gone = cut.pop()
            kept[at:at] = gone
        else:
            kept.append(event)
    return kept


def _original(event: Event) -> Event:
    """Gives the event that a `context.restored` is the copy of, at the copy's place."""
    data = event.data
    return msgspec.structs.replace(event, time=data["time"], type=data["type"], task_id=data["taskId"], data=data["data"])


def _waits(event: Event, task_ids: Collection[str]) -> bool:
    """Whether it is of a task that came while the others were reverted, and begins after that."""
    return event.task_id is not None and event.task_id not in task_ids and event.type in ("task.created", "message.added", "task.failed")
