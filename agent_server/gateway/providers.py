"""Where a provider's chat completions are, and with which key: from its name and the settings to one Endpoint."""

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from agent_server.gateway import Fault, ModelError


class ProviderSettings(msgspec.Struct, frozen=True):
    """`base_url` and `api_key` are AGENT_BASE_URL and AGENT_API_KEY; the providers' own keys are looked up in `environ`.
    `cache_marks`: whether requests for Anthropic's models are marked for its cache."""

    base_url: str | None = None
    api_key: str | None = None
    environ: Mapping[str, str] = msgspec.field(default_factory=dict)
    cache_marks: bool = True

    def __repr__(self) -> str:
        return "<ProviderSettings>"  # a key must not get into a log line by way of its holder


class Endpoint(msgspec.Struct, frozen=True):
    """Where one call goes. `url` is the whole one; `provider` is COMPATIBLE when AGENT_BASE_URL took the provider's place."""

    url: str
    api_key: str | None
    headers: Mapping[str, str]
    model: str
    provider: str

    @property
    def host(self) -> str:
        """For messages: a whole URL may hold a password."""
        return urlsplit(self.url).hostname or ""

    def __repr__(self) -> str:
        return "<Endpoint>"  # a key must not get into a log line by way of its holder


class Provider(msgspec.Struct, frozen=True):
    """The base of a provider's URLs, and the variable that holds its key (None: it takes none)."""

    url: str
    key: str | None


PROVIDERS = {
    "openrouter": Provider("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "openai": Provider("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "groq": Provider("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": Provider("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "deepseek": Provider("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "together": Provider("https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "fireworks": Provider("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "xai": Provider("https://api.x.ai/v1", "XAI_API_KEY"),
    "cerebras": Provider("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "moonshot": Provider("https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
    "cohere": Provider("https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY"),
    "ollama": Provider("http://127.0.0.1:11434/v1", None),
}

COMPATIBLE = "openai-compatible"

BASES = ("API_BASE", "BASE_URL")
"""How the variables end that name another URL for a provider: ANTHROPIC_API_BASE, or ANTHROPIC_BASE_URL."""

OPENROUTER_HEADERS = {"HTTP-Referer": "https://agent-server.invalid", "X-Title": "agent-server"}
"""How OpenRouter names the application in its statistics: https://openrouter.ai/docs/app-attribution"""


def resolve(provider: str, model: str, settings: ProviderSettings) -> Endpoint:
    """The endpoint of a provider's model.

    Errors: ModelError with Fault.BAD_REQUEST for a provider that is not in the table, with Fault.AUTHENTICATION for a
    key that is missing or cannot be sent.
    """
    if settings.base_url:
        # A provider's own key never goes to another's URL.
        return Endpoint(_chat(settings.base_url), usable(settings.api_key, "AGENT_API_KEY"), {}, model, COMPATIBLE)
    known = PROVIDERS.get(provider)
    if known is None:
        names = ", ".join((*PROVIDERS, "replay"))
        raise ModelError(
            Fault.BAD_REQUEST, f'Provider "{provider}" is not one of {names}; AGENT_BASE_URL reaches any OpenAI-compatible server.'
        )
    headers = OPENROUTER_HEADERS if provider == "openrouter" else {}
    if provider == "openai":
        model = model.removeprefix("openai/")
    url = base((f"{provider.upper()}_",), settings.environ) or known.url
    if provider == "ollama" and not urlsplit(url).path.strip("/"):
        url = f"{url.rstrip('/')}/v1"  # its variable names the server, also for other programs
    return Endpoint(_chat(url), _key(provider, known, settings.environ), headers, model, provider)


def base(beginnings: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """The URL that the operator names for a provider whose variables begin so."""
    names = (f"{beginning}{end}" for beginning in beginnings for end in BASES)
    return next((value for name in names if (value := environ.get(name, "").strip())), None)


def _chat(base_url: str) -> str:
    return f"{base_url.strip().rstrip('/')}/chat/completions"


def _key(name: str, provider: Provider, environ: Mapping[str, str]) -> str | None:
    if provider.key is None:
        return None
    key = usable(environ.get(provider.key), provider.key)
    if key is None:
        raise ModelError(Fault.AUTHENTICATION, f"Set {provider.key} to use provider {name}.")
    return key


def usable(key: str | None, variable: str) -> str | None:
    """The key without the white space that copying leaves around it; None when nothing is left."""
    key = (key or "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ModelError(Fault.AUTHENTICATION, f"{variable} holds characters that no key has, such as white space inside it.")
    return key or None
