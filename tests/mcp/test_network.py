"""MCP servers at a URL: sessions that expire, connections that break, and both forms of the transport."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.mcp.remote import Remote
from tests.mcp.test_workspace import call, configure, offered, results, run, warnings
from tests.serving import ServerProcess


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


@pytest.fixture(params=[False, True], ids=["http", "sse"])
def remote(request: pytest.FixtureRequest) -> Iterator[Remote]:
    remote = Remote(is_sse=request.param)
    yield remote
    remote.close()


def entry(remote: Remote, **more: Any) -> dict[str, Any]:
    return {"type": "sse" if remote.is_sse else "http", "url": remote.url, **more}


def test_a_session_that_has_expired_is_opened_again_and_the_call_repeated(
    agent: ServerProcess, model: OpenAIEmulator, remote: Remote
) -> None:
    configure(agent, far=entry(remote))
    run(agent, model, [call("echo")])
    remote.expire()
    run(agent, model, [call("echo")], [call("echo")])
    assert results(model) == ["echo done", "echo done"]
    assert (remote.calls["echo"], remote.calls["initialize"]) == (3, 2)


@pytest.mark.parametrize("said", ["Bad Request: No valid session ID provided", "Bad Request: Server not initialized"])
def test_a_server_that_calls_an_expired_session_a_bad_request_is_reached_again(
    said: str, agent: ServerProcess, model: OpenAIEmulator
) -> None:
    remote = Remote()
    remote.unknown = (400, -32000, said)
    configure(agent, far=entry(remote))
    run(agent, model, [call("echo")])
    remote.expire()
    run(agent, model, [call("echo")], [call("echo")])
    remote.close()
    assert results(model) == ["echo done", "echo done"]
    assert (remote.calls["echo"], remote.calls["initialize"]) == (3, 2)


def test_a_call_whose_connection_breaks_is_repeated_only_if_that_is_harmless(
    agent: ServerProcess, model: OpenAIEmulator, remote: Remote
) -> None:
    configure(agent, far=entry(remote))
    run(agent, model, [call("drop")], [call("echo")], [call("look")])
    dropped, echo, look = results(model)
    assert "may have run" in dropped
    assert (echo, look) == ("echo done", "look done")
    assert (remote.calls["drop"], remote.calls["look"]) == (1, 2)


def test_a_changed_list_is_heard_of(agent: ServerProcess, model: OpenAIEmulator, remote: Remote) -> None:
    configure(agent, far=entry(remote))
    run(agent, model, [call("grow")], [call("echo")], [call("grown")], is_stable=False)
    assert results(model) == ["grow done", "echo done", "grown done"]
    assert "grown" not in offered(model, 0)
    assert remote.calls["tools/list"] == 2


def test_the_older_transport_is_found_without_being_named(agent: ServerProcess, model: OpenAIEmulator, remote: Remote) -> None:
    (agent.workspace / "opencode.json").write_text(json.dumps({"mcp": {"far": {"type": "remote", "url": remote.url}}}))
    run(agent, model, [call("echo")])
    assert results(model) == ["echo done"]


def test_an_answer_without_end_is_cut_off(agent: ServerProcess, model: OpenAIEmulator, remote: Remote) -> None:
    configure(agent, far=entry(remote))
    run(agent, model, [call("huge")], [call("echo")])
    huge, echo = results(model)
    assert huge.startswith("Error: ")
    assert len(huge) < 1000
    assert echo == "echo done"


def test_a_server_that_has_gone_is_told_and_found_again(agent: ServerProcess, model: OpenAIEmulator) -> None:
    remote = Remote()
    configure(agent, far=entry(remote))
    run(agent, model, [call("echo")])
    remote.close()
    run(agent, model, [call("echo")])
    (gone,) = results(model)
    assert gone.startswith("Error: The MCP server far has gone, and does not come up again")
    assert len(warnings(agent, run(agent, model))) == 1
    back = Remote(port=remote.port)
    run(agent, model, [call("echo")])
    back.close()
    assert results(model) == ["echo done"]


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refusal_is_one_warning_that_says_so(agent: ServerProcess, model: OpenAIEmulator, remote: Remote, status: int) -> None:
    remote.refusal = status
    configure(agent, far={"url": remote.url})
    (warning,) = warnings(agent, run(agent, model))
    assert "far" in warning
    assert str(status) in warning
    assert "\n" not in warning


def test_a_server_that_does_not_let_a_session_end_is_left(agent: ServerProcess, model: OpenAIEmulator) -> None:
    remote = Remote()
    remote.is_stubborn = True
    run(agent, model, [call("echo")], tools=[{"mcp": {"type": "http", "url": remote.url}}])
    assert results(model) == ["echo done"]
    assert remote.left.wait(5)
    remote.close()
