"""Which of litellm's providers a call goes to, with which variables: from its name and the settings to one Target."""

from collections.abc import Mapping

import msgspec

from agent_server.gateway import Fault, ModelError
from agent_server.gateway.litellm_frames import Target
from agent_server.gateway.providers import COMPATIBLE, PROVIDERS, ProviderSettings, base, resolve, usable


class Backend(msgspec.Struct, frozen=True):
    """A provider as litellm knows it: `prefix` of its model names, and the variables it reads.

    One of the sets in `needs` must be there; the last one is named when none is. `reads` are the beginnings of further names. `keys` are
    the variables that are the API key, where it is the first of a set; what stands in another one litellm finds by itself.
    """

    prefix: str
    needs: tuple[tuple[str, ...], ...]
    reads: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


def _keyed(prefix: str, *keys: str, reads: tuple[str, ...] = ()) -> Backend:
    """A provider that takes one key, which may stand in any of these variables."""
    return Backend(prefix, tuple((key,) for key in keys), (*reads, f"{prefix.upper().replace('-', '_')}_"), keys)


_AWS = (
    ("AWS_BEARER_TOKEN_BEDROCK",),
    ("AWS_PROFILE",),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
)

BACKENDS: Mapping[str, Backend] = {
    # The token is no key: it goes into another header.
    "anthropic": Backend("anthropic", (("ANTHROPIC_API_KEY",), ("ANTHROPIC_AUTH_TOKEN",)), ("ANTHROPIC_",), ("ANTHROPIC_API_KEY",)),
    "gemini": _keyed("gemini", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "bedrock": Backend("bedrock", _AWS, ("AWS_", "BEDROCK_")),
    "sagemaker": Backend("sagemaker_chat", _AWS, ("AWS_",)),
    "azure": Backend(
        "azure",
        (
            ("AZURE_AD_TOKEN", "AZURE_API_BASE"),
            ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_API_BASE"),
            ("AZURE_API_KEY", "AZURE_API_BASE"),
        ),
        ("AZURE_",),
    ),
    "azure_ai": Backend("azure_ai", (("AZURE_AI_API_KEY", "AZURE_AI_API_BASE"),), ("AZURE_AI_",), ("AZURE_AI_API_KEY",)),
    "vertex_ai": Backend(
        "vertex_ai",
        (
            ("VERTEXAI_PROJECT", "VERTEXAI_LOCATION", "VERTEXAI_CREDENTIALS"),
            ("VERTEXAI_PROJECT", "VERTEXAI_LOCATION", "GOOGLE_APPLICATION_CREDENTIALS"),
        ),
        ("VERTEXAI_", "VERTEX_", "GOOGLE_"),
    ),
    "ai21": _keyed("ai21_chat", "AI21_API_KEY", reads=("AI21_",)),
    "aiml": _keyed("aiml", "AIML_API_KEY"),
    "amazon_nova": _keyed("amazon_nova", "AMAZON_NOVA_API_KEY"),
    "baseten": _keyed("baseten", "BASETEN_API_KEY"),
    "chutes": _keyed("chutes", "CHUTES_API_KEY"),
    "cloudflare": Backend("cloudflare", (("CLOUDFLARE_API_KEY", "CLOUDFLARE_ACCOUNT_ID"),), ("CLOUDFLARE_",), ("CLOUDFLARE_API_KEY",)),
    "codestral": _keyed("codestral", "CODESTRAL_API_KEY"),
    "cometapi": _keyed("cometapi", "COMETAPI_KEY"),
    "dashscope": _keyed("dashscope", "DASHSCOPE_API_KEY"),
    "databricks": Backend("databricks", (("DATABRICKS_API_KEY", "DATABRICKS_API_BASE"),), ("DATABRICKS_",), ("DATABRICKS_API_KEY",)),
    "deepinfra": _keyed("deepinfra", "DEEPINFRA_API_KEY"),
    "featherless_ai": _keyed("featherless_ai", "FEATHERLESS_AI_API_KEY"),
    "friendliai": _keyed("friendliai", "FRIENDLI_TOKEN", reads=("FRIENDLI_",)),
    "github": Backend("github", (("GITHUB_API_KEY",),), ("GITHUB_API_",), ("GITHUB_API_KEY",)),  # not GITHUB_TOKEN, an integration's
    "heroku": Backend("heroku", (("HEROKU_API_KEY", "HEROKU_API_BASE"),), ("HEROKU_",), ("HEROKU_API_KEY",)),
    "hosted_vllm": Backend("hosted_vllm", (("HOSTED_VLLM_API_BASE",),), ("HOSTED_VLLM_",)),
    "huggingface": _keyed("huggingface", "HUGGINGFACE_API_KEY", "HF_TOKEN", reads=("HF_",)),
    "hyperbolic": _keyed("hyperbolic", "HYPERBOLIC_API_KEY"),
    "inception": _keyed("inception", "INCEPTION_API_KEY"),
    "lambda_ai": _keyed("lambda_ai", "LAMBDA_API_KEY", reads=("LAMBDA_",)),
    "litellm_proxy": Backend("litellm_proxy", (("LITELLM_PROXY_API_KEY", "LITELLM_PROXY_API_BASE"),), ("LITELLM_PROXY_",)),
    "lm_studio": Backend("lm_studio", (("LM_STUDIO_API_BASE",),), ("LM_STUDIO_",)),
    "maritalk": _keyed("maritalk", "MARITALK_API_KEY"),
    "meta_llama": _keyed("meta_llama", "LLAMA_API_KEY", reads=("LLAMA_",)),
    "minimax": _keyed("minimax", "MINIMAX_API_KEY"),
    "modelscope": _keyed("modelscope", "MODELSCOPE_API_KEY"),
    "morph": _keyed("morph", "MORPH_API_KEY"),
    "nebius": _keyed("nebius", "NEBIUS_API_KEY"),
    "novita": _keyed("novita", "NOVITA_API_KEY"),
    "nscale": _keyed("nscale", "NSCALE_API_KEY"),
    "nvidia_nim": _keyed("nvidia_nim", "NVIDIA_NIM_API_KEY"),
    "oci": Backend("oci", (("OCI_REGION", "OCI_USER", "OCI_FINGERPRINT", "OCI_TENANCY", "OCI_COMPARTMENT_ID", "OCI_KEY_FILE"),), ("OCI_",)),
    "ovhcloud": _keyed("ovhcloud", "OVHCLOUD_API_KEY"),
    "perplexity": _keyed("perplexity", "PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY", reads=("PERPLEXITYAI_",)),
    "poe": _keyed("poe", "POE_API_KEY"),
    "replicate": _keyed("replicate", "REPLICATE_API_KEY", "REPLICATE_API_TOKEN"),
    "sambanova": _keyed("sambanova", "SAMBANOVA_API_KEY"),
    "scaleway": _keyed("scaleway", "SCW_SECRET_KEY"),
    "snowflake": Backend("snowflake", (("SNOWFLAKE_JWT", "SNOWFLAKE_ACCOUNT_ID"),), ("SNOWFLAKE_",)),
    "synthetic": _keyed("synthetic", "SYNTHETIC_API_KEY"),
    "v0": _keyed("v0", "V0_API_KEY"),
    "vercel_ai_gateway": _keyed("vercel_ai_gateway", "VERCEL_AI_GATEWAY_API_KEY"),
    "volcengine": _keyed("volcengine", "VOLCENGINE_API_KEY", "ARK_API_KEY"),
    "wandb": _keyed("wandb", "WANDB_API_KEY"),
    "watsonx": Backend("watsonx", (("WATSONX_URL", "WATSONX_API_KEY", "WATSONX_PROJECT_ID"),), ("WATSONX_", "WX_")),
    "xinference": Backend("xinference", (("XINFERENCE_API_BASE",),), ("XINFERENCE_",)),
    "zai": _keyed("zai", "ZAI_API_KEY"),
}
"""Further ways to models, besides those of PROVIDERS. Left out: what asks for a login, and what answers with no messages."""

LITELLM_PREFIXES = {"together": "together_ai", "fireworks": "fireworks_ai", "ollama": "ollama_chat", "cohere": "custom_openai"}
"""Of PROVIDERS, those that litellm calls otherwise."""

OLLAMA = "http://127.0.0.1:11434"


def target(provider: str, model: str, settings: ProviderSettings) -> Target:
    """The target of a provider's model.

    Errors: ModelError with Fault.BAD_REQUEST for a provider that is not known, with Fault.AUTHENTICATION for variables that are missing.
    """
    if settings.base_url or (provider in PROVIDERS and provider != "ollama"):
        return _compatible(provider, model, settings)
    if provider == "ollama":
        url = base(("OLLAMA_",), settings.environ) or OLLAMA
        return Target(f"ollama_chat/{model}", provider, model, url.rstrip("/").removesuffix("/v1"), None, {}, {}, is_keyless=True)
    backend = BACKENDS.get(provider)
    if backend is None:
        names = ", ".join((*PROVIDERS, *BACKENDS, "replay"))
        raise ModelError(
            Fault.BAD_REQUEST, f'Provider "{provider}" is not one of {names}; AGENT_BASE_URL reaches any OpenAI-compatible server.'
        )
    found = _found(provider, backend, settings.environ)
    (variable, value), *_ = found
    key = usable(value, variable) if variable in backend.keys else None
    environ = {name: value.strip() for name, value in settings.environ.items() if name.startswith(backend.reads)} | dict(found)
    name = _named(provider, backend, model)
    return Target(f"{backend.prefix}/{name}", provider, name, base(backend.reads, settings.environ), key, {}, environ)


def _compatible(provider: str, model: str, settings: ProviderSettings) -> Target:
    """What the light way reaches, at the same URL and with the same key."""
    endpoint = resolve(provider, model, settings)
    # litellm reads meanings into model names of OpenAI's, such as another API to call, that a compatible server does not share.
    prefix = "custom_openai" if endpoint.provider == COMPATIBLE else LITELLM_PREFIXES.get(provider, provider)
    key = endpoint.api_key or "none"  # litellm must not look for another one
    return Target(
        f"{prefix}/{endpoint.model}",
        endpoint.provider,
        endpoint.model,
        endpoint.url.removesuffix("/chat/completions"),
        key,
        endpoint.headers,
        {},
        is_keyless=endpoint.api_key is None,
    )


def _found(provider: str, backend: Backend, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """The first set of variables that is there."""
    for names in backend.needs:
        values = [environ.get(name, "").strip() for name in names]
        if all(values):
            return list(zip(names, values, strict=True))
    wanted = backend.needs[0] if backend.keys else backend.needs[-1]
    missing = [name for name in wanted if not environ.get(name, "").strip()]
    raise ModelError(Fault.AUTHENTICATION, f"Set {' and '.join(missing)} to use provider {provider}.")


def _named(provider: str, backend: Backend, model: str) -> str:
    model = model.removeprefix(f"{provider}/").removeprefix(f"{backend.prefix}/")
    # Anthropic writes claude-sonnet-4-5 what OpenRouter writes claude-sonnet-4.5.
    return model.replace(".", "-") if provider == "anthropic" else model
