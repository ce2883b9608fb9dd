"""No secret comes out, however the output is cut into pieces; and nothing else is changed or held back."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_server.redaction import MOST, Secrets
from tests.serving import TOKEN, ServerProcess, events, serving
from tools import MASK

CANARY = "canary-0f9e8d7c6b5a"

# Two letters only, so that secrets overlap, contain and begin one another.
LETTERS = st.text("ab", min_size=8, max_size=13)
ODD = st.text('ab"\\\n\té€\U0001f511', min_size=8, max_size=12)


@st.composite
def outputs(draw: st.DrawFn, letters: st.SearchStrategy[str]) -> tuple[list[str], list[bytes]]:
    """Secrets, and an output with some of them, whole and in part, cut anywhere: within characters too."""
    secrets = draw(st.lists(letters, min_size=1, max_size=4))
    pieces = st.one_of(st.sampled_from(secrets), st.sampled_from(secrets).map(lambda s: s[: len(s) // 2]), st.text("abc", max_size=3))
    whole = "".join(draw(st.lists(pieces, max_size=12))).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return secrets, [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@given(st.one_of(outputs(LETTERS), outputs(ODD)))
def test_a_stream_gives_the_same_however_it_is_cut(case: tuple[list[str], list[bytes]]) -> None:
    values, chunks = case
    secrets = Secrets(values)
    stream = secrets.stream()
    out = b"".join([*(stream.feed(chunk) for chunk in chunks), stream.end()])
    assert out == secrets.mask_bytes(b"".join(chunks))
    assert not any(value.encode() in out for value in values)


@given(st.one_of(outputs(LETTERS), outputs(ODD)), st.data())
def test_no_secret_comes_out_whole_when_what_was_held_is_released(case: tuple[list[str], list[bytes]], data: st.DataObject) -> None:
    values, chunks = case
    stream = Secrets(values).stream()
    out = b""
    for chunk in chunks:
        out += stream.feed(chunk)
        if data.draw(st.booleans()):
            out += stream.release()
            assert not stream.is_holding
    out += stream.end()
    assert not any(value.encode() in out for value in values)


@given(st.lists(st.binary(max_size=12), max_size=8), st.data())
def test_a_stream_without_a_secret_is_not_changed(chunks: list[bytes], data: st.DataObject) -> None:
    stream = Secrets(["\x01secret\x02", "aaaaaaaab", "\x00" * 9]).stream()
    whole = b"".join(chunks)
    out = b""
    for chunk in chunks:
        out += stream.feed(chunk)
        if data.draw(st.booleans()):
            out += stream.release()
    assert out + stream.end() == whole


@given(outputs(LETTERS))
def test_nothing_is_held_but_the_beginning_of_a_secret(case: tuple[list[str], list[bytes]]) -> None:
    values, chunks = case
    secrets = Secrets(values)
    stream = secrets.stream()
    fed = b""
    for chunk in chunks:
        stream.feed(chunk)
        fed += chunk
        if not any(fed.endswith(value[:size].encode()) for value in values for size in range(1, len(value))):
            assert not stream.is_holding


def test_a_secret_is_masked_at_once_also_when_a_longer_one_begins_with_it() -> None:
    stream = Secrets(["sk-12345", "sk-12345-and-the-rest-of-it"]).stream()
    assert stream.feed(b"key sk-12345") == b"key " + MASK.encode()
    assert stream.feed(b"-and-the-rest-of-it.") == b"."


def test_the_rest_of_a_secret_is_masked_when_its_beginning_was_released() -> None:
    stream = Secrets(["0123456789"]).stream()
    assert stream.feed(b"x01234") == b"x"
    assert stream.release() == b"01234"
    assert stream.feed(b"56789y") == MASK.encode() + b"y"


@pytest.mark.parametrize(
    ("values", "text", "masked"),
    [
        (["abcdefgh", "abcdefghij"], "abcdefghij", MASK),
        (["abcdefgh", "bcdefghi"], "abcdefghi", MASK),
        (["aaaaaaaa"], "aaaaaaaaaaa", MASK),
        (["abcdefgh"], "abcdefghabcdefgh", MASK * 2),
        (["abcdefgh"], "abcdefg", "abcdefg"),
        (["short"], "short", "short"),
        ([""], "", ""),
        (["pässwörd"], "pässwörd!", MASK + "!"),
        (["two\nlines"], "two\nlines", MASK),
        (["REDACTED", MASK], f"{MASK} REDACTED", f"{MASK} REDACTED"),
        (["seven77"], "seven77", "seven77"),
        (["öööö"], "öööö", MASK),
    ],
)
def test_a_text_is_masked(values: list[str], text: str, masked: str) -> None:
    assert Secrets(values).mask(text) == masked


JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=8), st.just("before-"), ODD),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.text(max_size=4), ODD), inner, max_size=4)),
    max_leaves=12,
)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for name, inner in value.items() for text in (name, *strings(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


@given(JSON, st.lists(ODD, min_size=1, max_size=3))
def test_json_stays_json_and_no_string_of_it_holds_a_secret(value: Any, values: list[str]) -> None:
    encoded, masked = Secrets(values).encode({"value": value, values[0]: [f"x{values[-1]}y"]})
    assert json.loads(encoded) == masked
    assert not any(secret in text for text in strings(masked) for secret in values)


@given(JSON)
def test_json_without_a_secret_is_not_changed(value: Any) -> None:
    encoded, same = Secrets(["no such secret"]).encode(value)
    assert same is value
    assert json.loads(encoded) == value


@pytest.mark.parametrize(
    "secret", ["1234567890", "true, null", '","bb":"', "}],[{]]]", "\\u0041\\n", '\\"\\"\\"\\"', "falsefalse", "12.5e+10"]
)
def test_a_secret_that_looks_like_json_breaks_none(secret: str) -> None:
    value: dict[str, Any] = {"a": [1234567890, 12.5e10, True, None, secret, f"<{secret}>"], secret: {"b": "ok"}, "c": [[], {}]}
    encoded, masked = Secrets([secret]).encode(value)
    assert json.loads(encoded) == masked
    assert masked == {"a": [1234567890, 12.5e10, True, None, MASK, f"<{MASK}>"], MASK: {"b": "ok"}, "c": [[], {}]}


def test_a_text_that_is_not_unicode_can_be_encoded() -> None:
    encoded, masked = Secrets(["0123456789"]).encode({"name": "\udcff0123456789", "\ud800": ["fine"]})
    assert json.loads(encoded) == masked == {"name": f"�{MASK}", "�": ["fine"]}


def test_a_secret_that_is_learned_later_is_masked_from_there_on() -> None:
    secrets = Secrets()
    stream = secrets.stream()
    assert stream.feed(b"0123456789") == b"0123456789"
    secrets.add(["0123456789"])
    assert stream.feed(b"0123456789") == MASK.encode()


# The server


def said(server: ServerProcess, process_id: str) -> list[dict[str, Any]]:
    """The output events of a command that has ended."""
    found = []
    with server.client() as client, client.stream("GET", "/events?after=0") as response:
        for event in events(response):
            if event.get("processId") == process_id:
                found.append(event)
                if event["type"] == "process.exited":
                    break
    return [event for event in found if event["type"] == "process.output"]


def test_a_secret_that_is_printed_in_parts_with_pauses_is_never_seen_whole(server: ServerProcess) -> None:
    secret = "part-one+part-two+part-three"
    script = 'for part in part-one +part-two +part-three " end"; do printf %s "$part"; sleep 0.3; done'
    done = server.execute(script, env={"MY_TOKEN": secret})
    chunks = [event["chunk"] for event in said(server, done["processId"])]
    assert len(chunks) > 1, "it is not held for longer than 200 ms"
    assert secret not in "".join(chunks)
    assert secret not in done["output"]
    assert done["output"].endswith(f"{MASK} end")
    assert "".join(chunks) == done["output"]


@pytest.mark.parametrize("name", ["DEPLOY_TOKEN", "SOME_KEY", "A_SECRET", "DB_PASSWORD", "lower_token"])
def test_a_credential_of_a_command_is_masked_wherever_it_would_show(server: ServerProcess, name: str) -> None:
    secret = f'va"lue\nof {name} é'
    script = f'printf "%s" "${name}" >&2; for i in $(seq 80000); do printf "%s\\n" "${name}"; done; false "${name}"'
    done = server.execute(script, env={name: secret})
    assert secret not in json.dumps(done, ensure_ascii=False)
    assert done["stderr"] == MASK
    assert done["truncated"]
    assert secret.encode() not in b"".join(path.read_bytes() for path in (server.data / "outputs").iterdir())
    assert done["stdout"].startswith(MASK + "\n")
    told = json.dumps(said(server, done["processId"]), ensure_ascii=False)
    assert MASK in told
    assert "of " + name not in told
    assert "of " + name not in server.get("/logs?lines=1000&level=debug").text
    assert "of " + name not in server.log()


def test_no_byte_that_is_stored_or_said_holds_a_credential(tmp_path: Any) -> None:
    key = "sk-or-canary-0123456789"
    attempts = [
        f"echo {key} {TOKEN} {CANARY}",
        f"printf 'a%sb' {key}; printf '%s' {TOKEN[:9]}; sleep 0.3; printf '%s' {TOKEN[9:]}",
        f"echo {key} | tee f.txt; cat f.txt >&2; rm f.txt; exit 3",
        f"for i in $(seq 40000); do echo {key}-{TOKEN}; done",
        f"echo {key}" + "; :" * 50_000,
        "env; cat /proc/self/environ; cat /proc/$PPID/environ; cat /proc/$PPID/cmdline; cat /proc/$PPID/task/*/environ",
        f"no-such-program-{key}",
        f"exec -a {TOKEN} sleep 0.01",
    ]
    with serving(tmp_path, OPENROUTER_API_KEY=key, MY_PASSWORD=CANARY, LOG_LEVEL="DEBUG") as server, server.client() as client:
        replies = [client.post("/execute", json={"command": attempt, "stdin": key}).text for attempt in attempts]
        replies += [client.post("/execute", json={"command": [f"/{key}", TOKEN], "cwd": cwd}).text for cwd in (".", key, f"/{TOKEN}")]
        replies += [client.post("/execute", json={"command": "true", "env": {key: key, "X": TOKEN}}).text]
        replies += [client.get(path).text for path in (f"/tasks/{key}", "/status", "/logs?lines=1000&level=debug", f"/changes?since={key}")]
        replies += [json.dumps(said(server, json.loads(replies[0])["processId"]))]
        running = [path.read_bytes() for path in server.data.rglob("*") if path.is_file()]
        assert server.stop() == 0
        stored = [path.read_bytes() for path in server.data.rglob("*") if path.is_file()]
        seen = "\n".join(replies) + server.log()
        found = b"".join(running + stored)
    for secret in (key, TOKEN, CANARY):
        assert secret not in seen
        assert secret.encode() not in found
    assert MASK in seen
    assert MASK.encode() in found


def test_the_servers_own_secrets_outlast_any_number_of_others() -> None:
    secrets = Secrets(["the-servers-own"])
    secrets.add((f"a-passing-value-{number:05}" for number in range(2 * MOST)), is_own=False)
    assert secrets.mask("the-servers-own") == MASK
    assert secrets.mask(f"a-passing-value-{2 * MOST - 1:05}") == MASK
    assert secrets.mask("a-passing-value-00000") == "a-passing-value-00000"
