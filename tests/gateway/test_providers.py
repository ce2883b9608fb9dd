import pytest

from agent_server.gateway import Fault, ModelError
from agent_server.gateway.providers import COMPATIBLE, PROVIDERS, ProviderSettings, resolve

KEYS = {provider.key: f"key of {name}".replace(" ", "-") for name, provider in PROVIDERS.items() if provider.key}


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_is_found_with_its_own_key(name: str) -> None:
    endpoint = resolve(name, "m", ProviderSettings(environ=KEYS))
    assert endpoint.url == f"{PROVIDERS[name].url}/chat/completions"
    assert endpoint.api_key == (f"key-of-{name}" if PROVIDERS[name].key else None)
    assert ("X-Title" in endpoint.headers) is (name == "openrouter")


@pytest.mark.parametrize(
    ("provider", "model", "sent"),
    [
        ("openai", "openai/gpt-4o", "gpt-4o"),
        ("openai", "gpt-4o", "gpt-4o"),
        ("openrouter", "openai/gpt-4o", "openai/gpt-4o"),
        ("groq", "openai/gpt-oss-20b", "openai/gpt-oss-20b"),
    ],
)
def test_only_openai_loses_its_prefix(provider: str, model: str, sent: str) -> None:
    assert resolve(provider, model, ProviderSettings(environ=KEYS)).model == sent


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:8000/v1", " http://127.0.0.1:8000/v1/ "])
@pytest.mark.parametrize("provider", ["openai", "anthropic", "mine"])
def test_a_base_url_takes_the_place_of_any_provider(base_url: str, provider: str) -> None:
    endpoint = resolve(provider, "openai/m", ProviderSettings(base_url, "sk-own", KEYS))
    assert (endpoint.url, endpoint.api_key) == ("http://127.0.0.1:8000/v1/chat/completions", "sk-own")
    assert (endpoint.model, endpoint.provider) == ("openai/m", COMPATIBLE)


@pytest.mark.parametrize(
    ("provider", "environ", "url"),
    [
        ("openai", {"OPENAI_BASE_URL": "https://eu.api.openai.test/v1/"}, "https://eu.api.openai.test/v1"),
        ("openai", {"OPENAI_API_BASE": " https://a/v1 ", "OPENAI_BASE_URL": "https://b/v1"}, "https://a/v1"),
        ("openai", {"OPENAI_BASE_URL": " "}, PROVIDERS["openai"].url),
        ("groq", {"OPENAI_BASE_URL": "https://a/v1"}, PROVIDERS["groq"].url),
        ("groq", {"GROQ_API_BASE": "https://a/v1"}, "https://a/v1"),
        ("ollama", {"OLLAMA_API_BASE": "http://gpu:11434"}, "http://gpu:11434/v1"),
        ("ollama", {"OLLAMA_API_BASE": "http://gpu:11434/v1/"}, "http://gpu:11434/v1"),
    ],
)
def test_an_operator_may_name_another_url_for_a_provider(provider: str, environ: dict[str, str], url: str) -> None:
    endpoint = resolve(provider, "m", ProviderSettings(environ=KEYS | environ))
    assert (endpoint.url, endpoint.provider) == (f"{url}/chat/completions", provider)
    there = resolve(provider, "m", ProviderSettings("http://mine/v1", "sk-own", KEYS | environ))
    assert (there.url, there.api_key) == ("http://mine/v1/chat/completions", "sk-own")


def test_the_key_of_a_provider_does_not_go_to_a_base_url() -> None:
    assert resolve("openai", "m", ProviderSettings("http://127.0.0.1/v1", None, KEYS)).api_key is None


@pytest.mark.parametrize("key", [None, "", "  "])
def test_a_missing_key_names_its_variable(key: str | None) -> None:
    with pytest.raises(ModelError) as caught:
        resolve("openrouter", "m", ProviderSettings(environ={} if key is None else {"OPENROUTER_API_KEY": key}))
    assert caught.value.fault is Fault.AUTHENTICATION
    assert caught.value.message == "Set OPENROUTER_API_KEY to use provider openrouter."


def test_a_key_loses_the_white_space_around_it() -> None:
    assert resolve("xai", "m", ProviderSettings(environ={"XAI_API_KEY": " sk-1\n"})).api_key == "sk-1"


@pytest.mark.parametrize("key", ["sk-1\nsk-2", "sk 1", "sk-ä"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve("xai", "m", ProviderSettings(environ={"XAI_API_KEY": key}))
    assert caught.value.fault is Fault.AUTHENTICATION
    assert "XAI_API_KEY" in caught.value.message
    assert key not in caught.value.message


@pytest.mark.parametrize("name", ["anthropic", "bedrock", "nobody", ""])
def test_an_unknown_provider_is_told_which_there_are(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(name, "m", ProviderSettings(environ=KEYS))
    assert caught.value.fault is Fault.BAD_REQUEST
    assert all(known in caught.value.message for known in (*PROVIDERS, "replay", "AGENT_BASE_URL"))


def test_keys_are_not_in_what_is_printed() -> None:
    settings = ProviderSettings("http://127.0.0.1/v1", "sk-secret", {"XAI_API_KEY": "sk-secret"})
    assert "sk-secret" not in f"{settings}{resolve('xai', 'm', settings)}"
