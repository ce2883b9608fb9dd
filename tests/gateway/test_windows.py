import pytest

from agent_server.gateway.windows import DEFAULT_WINDOW, Windows, known_window


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("anthropic/claude-sonnet-4.5", 200_000),
        ("claude-3-haiku-20240307", 200_000),
        ("openai/gpt-4.1-mini", 1_047_576),
        ("gpt-5-codex", 272_000),
        ("gpt-4o-mini", 128_000),
        ("gpt-4", 8_192),
        ("gpt-4-0613", 8_192),
        ("gpt-4-32k-0613", 32_768),
        ("gpt-4-turbo-preview", 128_000),
        ("openai/o3-mini", 200_000),
        ("google/gemini-2.5-pro", 1_048_576),
        ("x-ai/grok-4-fast", 2_000_000),
        ("x-ai/grok-4", 256_000),
        ("deepseek/deepseek-chat-v3.1", 128_000),
        ("moonshotai/Kimi-K2-0905", 262_144),
        ("qwen/qwen3-coder:free", 256_000),
        ("z-ai/glm-4.6", 200_000),
        ("meta-llama/llama-3.3-70b-instruct", 128_000),
        ("mistralai/devstral-medium", 128_000),
        ("nobody/model-x", None),
        ("foo-o3d", None),
    ],
)
def test_common_models_are_known_by_their_names(model: str, tokens: int | None) -> None:
    assert known_window(model) == tokens


async def test_the_setting_goes_over_all_and_a_default_is_under_all() -> None:
    assert await Windows(5_000).find("openrouter", "anthropic/claude-sonnet-4.5") == 5_000
    assert await Windows().find("openrouter", "nobody/model-x") == DEFAULT_WINDOW
    assert await Windows().find("cohere", "command-r-plus") == 128_000  # litellm's table has it
