import re

import pytest

from agent_server.gateway import Fault, ModelError
from agent_server.gateway.litellm_frames import Target
from agent_server.gateway.litellm_targets import BACKENDS, target
from agent_server.gateway.providers import PROVIDERS, ProviderSettings
from agent_server.settings import is_credential


def to(provider: str, model: str = "m", **environ: str) -> Target:
    return target(provider, model, ProviderSettings(environ=environ))


@pytest.mark.parametrize(
    ("provider", "model", "environ", "name", "key"),
    [
        ("anthropic", "claude-sonnet-4-5", {"ANTHROPIC_API_KEY": "k"}, "anthropic/claude-sonnet-4-5", "k"),
        ("anthropic", "m", {"ANTHROPIC_AUTH_TOKEN": "t"}, None, None),
        ("anthropic", "anthropic/claude-sonnet-4.5", {"ANTHROPIC_API_KEY": " k "}, "anthropic/claude-sonnet-4-5", "k"),
        ("gemini", "gemini-2.5-pro", {"GEMINI_API_KEY": "k"}, "gemini/gemini-2.5-pro", "k"),
        ("gemini", "gemini-2.5-pro", {"GOOGLE_API_KEY": "k"}, "gemini/gemini-2.5-pro", "k"),
        ("vertex_ai", "gemini-2.5-pro", {"VERTEXAI_PROJECT": "p", "VERTEXAI_LOCATION": "l", "VERTEXAI_CREDENTIALS": "{}"}, None, None),
        ("bedrock", "us.amazon.nova-pro-v1:0", {"AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": "s"}, None, None),
        ("bedrock", "bedrock/x", {"AWS_BEARER_TOKEN_BEDROCK": "t"}, "bedrock/x", None),
        ("azure", "my-deployment", {"AZURE_API_KEY": "k", "AZURE_API_BASE": "https://a"}, None, None),
        ("cohere", "command-r", {"COHERE_API_KEY": "k"}, "custom_openai/command-r", "k"),
        ("openai", "openai/gpt-5", {"OPENAI_API_KEY": "k"}, "openai/gpt-5", "k"),
        ("openrouter", "openai/gpt-5", {"OPENROUTER_API_KEY": "k"}, "openrouter/openai/gpt-5", "k"),
        ("groq", "openai/gpt-oss-20b", {"GROQ_API_KEY": "k"}, "groq/openai/gpt-oss-20b", "k"),
        ("mistral", "m", {"MISTRAL_API_KEY": "k"}, "mistral/m", "k"),
        ("deepseek", "m", {"DEEPSEEK_API_KEY": "k"}, "deepseek/m", "k"),
        ("xai", "m", {"XAI_API_KEY": "k"}, "xai/m", "k"),
        ("together", "m", {"TOGETHER_API_KEY": "k"}, "together_ai/m", "k"),
        ("ollama", "llama3", {}, "ollama_chat/llama3", None),
    ],
)
def test_a_provider_and_its_model_have_a_name_at_litellm(
    provider: str, model: str, environ: dict[str, str], name: str | None, key: str | None
) -> None:
    found = to(provider, model, **environ)
    assert found.model == (name or f"{provider}/{model}")
    assert found.api_key == key


@pytest.mark.parametrize("base", ["http://gpu:11434", "http://gpu:11434/", "http://gpu:11434/v1"])
def test_ollama_is_found_where_both_ways_find_it(base: str) -> None:
    assert to("ollama", OLLAMA_API_BASE=base).api_base == "http://gpu:11434"


@pytest.mark.parametrize("provider", [*PROVIDERS, *BACKENDS])
def test_what_is_missing_is_named_at_once(provider: str) -> None:
    if provider == "ollama":
        return
    with pytest.raises(ModelError) as caught:
        to(provider)
    assert caught.value.fault is Fault.AUTHENTICATION
    names = re.fullmatch(rf"Set (.+) to use provider {provider}\.", caught.value.message)
    assert names is not None, caught.value.message
    assert to(provider, **dict.fromkeys(names[1].split(" and "), "value-1")).provider == provider


def test_only_the_missing_one_of_several_is_named() -> None:
    with pytest.raises(ModelError) as caught:
        to("azure", AZURE_API_KEY="k", AZURE_API_BASE=" ")
    assert caught.value.message == "Set AZURE_API_BASE to use provider azure."


@pytest.mark.parametrize("provider", ["nobody", "", "Anthropic", "github_copilot"])
def test_an_unknown_provider_is_told_which_there_are(provider: str) -> None:
    with pytest.raises(ModelError) as caught:
        to(provider)
    assert caught.value.fault is Fault.BAD_REQUEST
    assert all(known in caught.value.message for known in (*PROVIDERS, *BACKENDS, "replay", "AGENT_BASE_URL"))


def test_a_provider_gets_its_own_variables_and_no_others() -> None:
    environ = {"AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "eu-west-1", "OPENAI_API_KEY": "o", "SECRET": "x"}
    assert set(to("bedrock", **environ).environ) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"}


NO_SECRETS = re.compile(
    r"(BASE|URL|FILE|PROFILE|ARN|ID|PROJECT|LOCATION|RELATIVE_URI|FULL_URI|OCI_REGION|OCI_USER|OCI_FINGERPRINT|OCI_TENANCY"
    r"|GOOGLE_APPLICATION_CREDENTIALS)$"
)


@pytest.mark.parametrize("name", sorted({name for backend in BACKENDS.values() for names in backend.needs for name in names}))
def test_a_variable_that_is_a_key_is_masked_everywhere(name: str) -> None:
    assert is_credential(name) is (NO_SECRETS.search(name) is None)


def test_the_token_of_an_integration_is_nobodys_key() -> None:
    assert "GITHUB_TOKEN" not in to("github", GITHUB_API_KEY="k", GITHUB_TOKEN="t").environ


@pytest.mark.parametrize("name", ["ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL"])
def test_a_variable_names_another_url(name: str) -> None:
    assert to("anthropic", ANTHROPIC_API_KEY="k", **{name: "http://127.0.0.1:9"}).api_base == "http://127.0.0.1:9"


def test_a_base_url_takes_the_place_of_any_provider() -> None:
    found = target("anthropic", "a/m", ProviderSettings("http://127.0.0.1/v1", None, {"ANTHROPIC_API_KEY": "k"}))
    assert (found.model, found.provider, found.api_base) == ("custom_openai/a/m", "openai-compatible", "http://127.0.0.1/v1")
    assert found.is_keyless
    assert found.environ == {}


@pytest.mark.parametrize("key", ["sk-1\nsk-2", "sk 1", "sk-ä"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ModelError) as caught:
        to("anthropic", ANTHROPIC_API_KEY=key)
    assert "ANTHROPIC_API_KEY" in caught.value.message
    assert key not in caught.value.message


def test_keys_are_not_in_what_is_printed() -> None:
    assert "sk-secret" not in repr(to("anthropic", ANTHROPIC_API_KEY="sk-secret"))
