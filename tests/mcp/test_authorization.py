"""MCP servers that ask for authorization: whom the client believes, what it asks for, and in whose name."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.mcp.authority import Authority
from tests.mcp.remote import Remote
from tests.mcp.test_workspace import call, configure, results, run, warnings
from tests.serving import ServerProcess

ID_TOKEN = "the-id-token-of-somebody"


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


@pytest.fixture
def remote() -> Iterator[Remote]:
    """A server that names its own origin as its authorization server."""
    remote = Remote()
    remote.authority = Authority(remote.origin, remote.origin, leads_to=remote.origin)
    yield remote
    remote.close()


@pytest.fixture
def authority(remote: Remote) -> Authority:
    assert remote.authority is not None
    return remote.authority


def identity(authority: Authority, **more: str) -> dict[str, str]:
    provider = {"idpTokenEndpoint": f"{authority.origin}/idp/token", "idpClientId": "us-at/the-provider"}
    return {"clientId": "us", "clientSecret": "our-secret-there", "idToken": "${ID_TOKEN}", **provider, **more}


def entry(remote: Remote, oauth: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "http", "url": remote.url, **({} if oauth is None else {"oauth": oauth})}


def set_variable(agent: ServerProcess, value: str) -> None:
    with agent.client() as client:
        assert client.patch("/env", json={"env": {"ID_TOKEN": value}}).status_code == 200


def test_a_scope_that_is_configured_is_the_one_asked_for(
    agent: ServerProcess, model: OpenAIEmulator, remote: Remote, authority: Authority
) -> None:
    configure(agent, one=entry(remote))
    run(agent, model, [call("echo")])
    configure(agent, one=entry(remote, {"scope": "read list"}))
    run(agent, model, [call("echo")])
    configure(
        agent, one=entry(remote, {"scope": "read", "grantType": "client_credentials", "clientId": "us", "clientSecret": "our-secret"})
    )
    run(agent, model, [call("echo")])
    assert [form["scope"] for form in authority.forms("/as/authorization")] == ["all", "read list"]
    assert authority.forms("/as/token")[-1]["scope"] == "read"


@pytest.mark.parametrize(
    ("issuer", "leads_to", "is_believed"),
    [
        ("", None, True),
        ("/tenant", None, True),
        ("/tenant", "", False),
        ("https://another.example", None, False),
        ("https://another.example", "", False),
        ("http://127.0.0.1:1", None, False),
    ],
)
def test_an_issuer_is_what_was_named_or_of_the_servers_own_origin_where_none_was(
    agent: ServerProcess,
    model: OpenAIEmulator,
    remote: Remote,
    authority: Authority,
    issuer: str,
    leads_to: str | None,
    is_believed: bool,
) -> None:
    authority.issuer = issuer if "://" in issuer else remote.origin + issuer
    authority.leads_to = None if leads_to is None else remote.origin
    configure(agent, one=entry(remote))
    found = warnings(agent, run(agent, model))
    assert len(found) == (not is_believed)
    assert all("issuer mismatch" in warning for warning in found)
    assert len(authority.forms("/as/token")) == is_believed


def test_an_id_token_gives_a_token_in_somebodys_name(
    agent: ServerProcess, model: OpenAIEmulator, remote: Remote, authority: Authority
) -> None:
    set_variable(agent, ID_TOKEN)
    configure(agent, one=entry(remote, identity(authority, scope="read")))
    run(agent, model, [call("echo")])
    assert results(model) == ["echo done"]
    assert authority.forms("/idp/token") == [
        {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "requested_token_type": "urn:ietf:params:oauth:token-type:id-jag",
            "subject_token": ID_TOKEN,
            "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
            "audience": remote.origin,
            "resource": remote.url,
            "scope": "read",
            "client_id": "us-at/the-provider",
        }
    ]
    assert authority.forms("/as/token") == [
        {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "assertion": "the-assertion",
            "resource": remote.url,
            "scope": "read",
        }
    ]
    assert authority.credentials("/as/token") == ["Basic dXM6b3VyLXNlY3JldC10aGVyZQ=="]


def test_an_identity_provider_that_wants_a_secret_gets_it(
    agent: ServerProcess, model: OpenAIEmulator, remote: Remote, authority: Authority
) -> None:
    set_variable(agent, ID_TOKEN)
    configure(agent, one=entry(remote, identity(authority, idpClientSecret="a:secret/of-ours")))
    run(agent, model, [call("echo")])
    assert authority.credentials("/idp/token") == ["Basic dXMtYXQlMkZ0aGUtcHJvdmlkZXI6YSUzQXNlY3JldCUyRm9mLW91cnM="]
    assert "client_id" not in authority.forms("/idp/token")[0]


def test_an_id_token_that_has_expired_is_a_warning_until_there_is_another(
    agent: ServerProcess, model: OpenAIEmulator, remote: Remote, authority: Authority
) -> None:
    given = authority.identity
    authority.identity = (400, {"error": "invalid_grant", "error_description": f"{ID_TOKEN} has expired"})
    set_variable(agent, ID_TOKEN)
    configure(agent, one=entry(remote, identity(authority)))
    task_id = run(agent, model)
    (warning,) = warnings(agent, task_id)
    assert "the identity provider gave nothing for the ID token, which may have expired: invalid_grant" in warning
    assert ID_TOKEN not in str(agent.task_events(task_id))
    authority.identity = given
    set_variable(agent, "another-id-token")
    run(agent, model, [call("echo")])
    assert results(model) == ["echo done"]
    assert authority.forms("/idp/token")[-1]["subject_token"] == "another-id-token"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"access_token": "x", "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}, "something else"),
        ({"access_token": 5, "issued_token_type": "urn:ietf:params:oauth:token-type:id-jag"}, "something else"),
        ([], "something else"),
        ("x" * (2 << 20), "over 1048576 bytes"),
    ],
)
def test_what_is_no_assertion_goes_nowhere(
    agent: ServerProcess, model: OpenAIEmulator, remote: Remote, authority: Authority, answer: Any, said: str
) -> None:
    set_variable(agent, ID_TOKEN)
    authority.identity = (200, answer)
    configure(agent, one=entry(remote, identity(authority)))
    (warning,) = warnings(agent, run(agent, model))
    assert said in warning
    assert authority.forms("/as/token") == []


def test_an_issuer_that_is_configured_is_the_only_one_that_gets_an_assertion(
    agent: ServerProcess, model: OpenAIEmulator, remote: Remote, authority: Authority
) -> None:
    set_variable(agent, ID_TOKEN)
    configure(agent, one=entry(remote, identity(authority, issuer="https://another.example")))
    (warning,) = warnings(agent, run(agent, model))
    assert "issuer mismatch" in warning
    assert authority.forms("/idp/token") == authority.forms("/as/token") == []


@pytest.mark.parametrize(
    "change", [{"clientSecret": None}, {"idpTokenEndpoint": None}, {"idpTokenEndpoint": "ftp://x"}, {"privateKey": "x"}]
)
def test_an_identity_that_cannot_be_used_is_refused(
    agent: ServerProcess, remote: Remote, authority: Authority, change: dict[str, Any]
) -> None:
    oauth = {**identity(authority), "idToken": ID_TOKEN, **change}
    refused = agent.post("/run", {"prompt": "go", "tools": [{"mcp": entry(remote, oauth)}]})
    assert refused.status_code == 400
    assert refused.json()["error"]["details"]["path"].startswith("tools[0].mcp.oauth")


def test_a_task_brings_an_identity_that_is_never_shown(
    agent: ServerProcess, model: OpenAIEmulator, remote: Remote, authority: Authority
) -> None:
    oauth = {**identity(authority, idpClientSecret="our-secret-at-the-provider"), "idToken": ID_TOKEN}
    task_id = run(agent, model, [call("echo")], tools=[{"mcp": entry(remote, oauth)}])
    assert results(model) == ["echo done"]
    told = str(agent.task_events(task_id))
    assert not any(secret in told for secret in (ID_TOKEN, "our-secret-there", "our-secret-at-the-provider"))


def test_a_token_that_an_authorization_server_gave_is_shown_nowhere(agent: ServerProcess, model: OpenAIEmulator, remote: Remote) -> None:
    configure(agent, one=entry(remote))
    task_id = run(agent, model, [call("echo", text="I was given the-token.")])
    assert results(model) == ["echo done"]
    assert "the-token" not in str(agent.task_events(task_id))


def test_an_assertion_that_is_refused_is_shown_nowhere(
    agent: ServerProcess, model: OpenAIEmulator, remote: Remote, authority: Authority
) -> None:
    authority.refuses_assertions = True
    set_variable(agent, ID_TOKEN)
    configure(agent, one=entry(remote, identity(authority)))
    (warning,) = warnings(agent, run(agent, model))
    assert "is not known" in warning
    assert "the-assertion" not in warning
