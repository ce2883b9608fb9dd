"""The life of litellm's process: when it starts, what happens when it dies, stalls or talks nonsense, and when it ends."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from agent_server.gateway import Completion, Fault, ModelError, ModelOptions, TextDelta
from agent_server.gateway.litellm import LitellmGateway
from agent_server.gateway.litellm_processes import MAX_DEATHS, Processes
from agent_server.gateway.providers import ProviderSettings
from agent_server.gateway.retry import stream_with_retries
from tests.emulators.openai import OpenAIEmulator
from tests.gateway.conftest import OPTIONS, collect, user
from tests.serving import is_alive

in_session = pytest.mark.asyncio(loop_scope="session")


DOUBLE = """
import base64, json, os, sys
def say(kind, **more):
    print(json.dumps({"type": kind, **more}), flush=True)
open(%r, "a").write(f"{os.getpid()}\\n")
say("Ready")
answer = b'data: {"choices":[{"delta":{"content":"Hello"},"finish_reason":"stop"}]}\\n\\ndata: [DONE]\\n\\n'
for line in sys.stdin:
    call = json.loads(line)
    if call["type"] == "Call":
        %s
"""
"""A program that speaks as litellm's process does, and starts at once."""

ANSWER = 'say("Bytes", id=call["id"], data=base64.b64encode(answer).decode()); say("End", id=call["id"])'


def double(folder: Path, deed: str = ANSWER, *, idle_stop: float = 300.0, idle_timeout: float = 0.1) -> tuple[LitellmGateway, Processes]:
    """A gateway on the double, which does `deed` with each call."""
    program = ("-c", DOUBLE % (str(folder / "started"), deed))
    processes = Processes({"PATH": os.environ["PATH"]}, idle_stop=idle_stop, program=program)
    return LitellmGateway(ProviderSettings("http://127.0.0.1:1/v1"), idle_timeout=idle_timeout, processes=processes), processes


def started(folder: Path) -> list[int]:
    """The ids of the processes that the double has run in."""
    file = folder / "started"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


async def soon(fact: Callable[[], object]) -> None:
    until = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < until, "it goes on"
        await asyncio.sleep(0.01)


async def gone(pid: int) -> None:
    await soon(lambda: not is_alive(pid))


async def failure(gateway: LitellmGateway) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await collect(gateway)
    return caught.value


async def test_it_is_started_by_the_first_call_and_ended_when_idle(tmp_path: Path) -> None:
    gateway, processes = double(tmp_path, idle_stop=0.2)
    assert (processes.pid, started(tmp_path)) == (None, [])
    answers = await asyncio.gather(*(collect(gateway) for _ in range(20)))
    assert [completion.message.text for _, completion in answers] == ["Hello"] * 20
    (pid,) = started(tmp_path)
    assert processes.pid == pid
    await gone(pid)
    assert (await collect(gateway))[1].message.text == "Hello"
    assert len(started(tmp_path)) == 2
    await gateway.close()
    await gateway.close()
    assert not any(map(is_alive, started(tmp_path)))


async def test_it_is_not_ended_while_a_call_runs(tmp_path: Path) -> None:
    slow = f"import time; time.sleep(0.5); {ANSWER}"
    gateway, _ = double(tmp_path, slow, idle_stop=0.1)
    for _ in range(2):
        assert (await collect(gateway))[1].message.text == "Hello"
        await asyncio.sleep(0.01)
    assert len(started(tmp_path)) == 1
    await gateway.close()


async def test_one_that_dies_is_replaced_but_not_for_ever(tmp_path: Path) -> None:
    gateway, _ = double(tmp_path, "os._exit(3)")
    errors = [await failure(gateway) for _ in range(MAX_DEATHS + 2)]
    assert {error.fault for error in errors[:MAX_DEATHS]} == {Fault.NETWORK}
    assert "exit code 3" in errors[0].message
    assert {error.fault for error in errors[MAX_DEATHS:]} == {Fault.OVERLOADED}
    assert f"ended {MAX_DEATHS} times without an answer" in errors[-1].message
    assert len(started(tmp_path)) == MAX_DEATHS
    await gateway.close()


async def test_one_that_cannot_start_says_so(tmp_path: Path) -> None:
    processes = Processes({}, program=("-c", "import sys; sys.exit('no such module')"))
    gateway = LitellmGateway(ProviderSettings("http://127.0.0.1:1/v1"), processes=processes)
    errors = await asyncio.gather(*(failure(gateway) for _ in range(5)))
    assert {(error.fault, error.message) for error in errors} == {
        (Fault.OVERLOADED, "litellm's process ended while it started; see the log.")
    }
    await gateway.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        'print("oops", flush=True)',
        'print("x" * 10**6, flush=True)',
        'say("Bytes", id=call["id"], data=5)',
        'print((json.dumps({"type": "Bytes", "id": call["id"], "data": ""}) + "\\n") * 99, flush=True)',
    ],
)
async def test_one_that_talks_nonsense_is_killed(tmp_path: Path, nonsense: str) -> None:
    gateway, _ = double(tmp_path, f"{nonsense}; import time; time.sleep(60)")
    assert (await failure(gateway)).fault is Fault.NETWORK
    await gone(started(tmp_path)[0])
    await gateway.close()


async def test_one_that_does_not_answer_is_killed(tmp_path: Path) -> None:
    gateway, _ = double(tmp_path, "pass")
    assert (await failure(gateway)).fault is Fault.STREAM_IDLE
    await gone(started(tmp_path)[0])
    await gateway.close()


async def test_a_call_that_is_given_up_while_it_starts_leaves_it_to_others(tmp_path: Path) -> None:
    gateway, processes = double(tmp_path)
    first, second = (asyncio.create_task(collect(gateway)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second)[1].message.text == "Hello"
    assert len(started(tmp_path)) == 1
    assert processes.pid == started(tmp_path)[0]
    await gateway.close()


async def test_one_that_nobody_waits_for_any_more_is_kept_and_ended_like_others(tmp_path: Path) -> None:
    gateway, processes = double(tmp_path, idle_stop=1)
    call = asyncio.create_task(collect(gateway))
    await asyncio.sleep(0)
    call.cancel()
    await soon(lambda: processes.pid)
    assert (await collect(gateway))[1].message.text == "Hello"
    (pid,) = started(tmp_path)
    await gone(pid)

    call = asyncio.create_task(collect(gateway))
    await asyncio.sleep(0)
    call.cancel()
    await soon(lambda: len(started(tmp_path)) == 2)
    await gone(started(tmp_path)[1])
    await gateway.close()


@in_session
async def test_a_slow_reader_holds_up_its_own_call_alone(emulator: OpenAIEmulator, processes: Processes) -> None:
    gateway = LitellmGateway(ProviderSettings(emulator.url, "sk-1"), processes=processes)
    emulator.script({"text": "0123456789abcdef" * 2**20, "pieces": 400}, {"text": "Quick"})
    async with aclosing(gateway.stream([user("Go")], [], OPTIONS)) as deltas:
        assert isinstance(await anext(deltas), TextDelta)
        assert (await collect(gateway))[1].message.text == "Quick"
        rest = [delta async for delta in deltas]
    assert isinstance(rest[-1], Completion)
    assert rest[-1].message.text == "0123456789abcdef" * 2**20


PART = """say("Bytes", id=call["id"], data=base64.b64encode(b'data: {"choices":[{"delta":{"content":"Hel"}}]}\\n\\n').decode())"""
"""The beginning of an answer, whose rest never comes."""


async def test_calls_survive_its_death(tmp_path: Path) -> None:
    deed = f"""if open({str(tmp_path / "started")!r}).read().count(chr(10)) == 1:
            {PART}
        else:
            {ANSWER}"""
    gateway, processes = double(tmp_path, deed, idle_timeout=60)
    told: list[ModelError] = []

    async def on_retry(error: ModelError, tries: int, delay: float) -> None:
        told.append(error)

    async def survive() -> str:
        text = ""
        async with aclosing(stream_with_retries(gateway, [user("Go")], [], OPTIONS, on_retry=on_retry, base_delay=0.01)) as deltas:
            async for delta in deltas:
                if isinstance(delta, TextDelta) and not told and processes.pid is not None:
                    with suppress(ProcessLookupError):  # another of the five was quicker
                        os.kill(started(tmp_path)[0], signal.SIGKILL)
                text = delta.message.text if isinstance(delta, Completion) else text
        return text

    assert await asyncio.gather(*(survive() for _ in range(5))) == ["Hello"] * 5
    assert {(error.fault, "signal 9" in error.message) for error in told} == {(Fault.NETWORK, True)}
    assert len(started(tmp_path)) == 2
    await gateway.close()


@in_session
async def test_many_calls_run_at_once(emulator: OpenAIEmulator, processes: Processes) -> None:
    gateway = LitellmGateway(ProviderSettings(emulator.url, "sk-1"), processes=processes)
    await collect_all(gateway, emulator, 1)  # it is up
    before = processes.pid
    assert before is not None
    begun = time.monotonic()
    await collect_all(gateway, emulator, 20, delay=0.1)
    assert time.monotonic() - begun < 20 * 0.1 * 8  # one after another they would take longer
    assert processes.pid == before


async def collect_all(gateway: LitellmGateway, emulator: OpenAIEmulator, count: int, *, delay: float = 0.0) -> None:
    emulator.script({"repeat": {"text": "Hello", "delay": delay}, "times": count})
    answers = await asyncio.gather(*(collect(gateway) for _ in range(count)))
    assert [completion.message.text for _, completion in answers] == ["Hello"] * count


@in_session
@pytest.mark.parametrize("base", ["http://127.0.0.1:1", "https://user:hunter2@127.0.0.1:1"])
async def test_a_provider_that_cannot_be_reached_is_named(processes: Processes, base: str) -> None:
    environ = {"ANTHROPIC_API_KEY": "sk-ant", "ANTHROPIC_BASE_URL": base}
    gateway = LitellmGateway(ProviderSettings(environ=environ), idle_timeout=1, processes=processes)
    with pytest.raises(ModelError) as caught:
        await collect(gateway, options=ModelOptions("anthropic", "claude-sonnet-4-5"))
    assert caught.value.fault is Fault.NETWORK
    assert "anthropic cannot be reached at 127.0.0.1" in caught.value.message
    assert "hunter2" not in caught.value.message


def test_the_server_never_imports_litellm() -> None:
    program = """
import asyncio, sys
from agent_server.gateway import ModelError, ModelOptions
from agent_server.gateway.litellm import LitellmGateway
from agent_server.gateway.litellm_processes import Processes
from agent_server.gateway.providers import ProviderSettings
from agent_server.messages import Message, Text
async def main():
    answer = '''
import json, sys
print('{"type":"Ready"}', flush=True)
call = json.loads(sys.stdin.readline())
print(json.dumps({"type": "Failed", "id": call["id"], "fault": "rate_limit", "message": "no"}), flush=True)
sys.stdin.read()
'''
    gateway = LitellmGateway(ProviderSettings(environ={"ANTHROPIC_API_KEY": "k"}), processes=Processes({}, program=("-c", answer)))
    try:
        async for _ in gateway.stream([Message("user", (Text("Hi"),))], [], ModelOptions("anthropic", "m")):
            pass
    except ModelError as error:
        assert error.fault.value == "rate_limit", error
    await gateway.close()
asyncio.run(main())
sys.exit(bool({"litellm", "openai", "httpx", "pydantic"} & set(sys.modules)))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
