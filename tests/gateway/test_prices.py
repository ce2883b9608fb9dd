import subprocess
import sys

import pytest

from agent_server.gateway.prices import NAMES_LIMIT, Price, PriceTable, read_price
from agent_server.messages import Usage


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o"),
        ("openrouter", "openai/gpt-4o"),
        ("openrouter", "anthropic/claude-sonnet-4.5"),
        ("groq", "openai/gpt-oss-120b"),
        ("together", "deepseek-ai/DeepSeek-V3"),
        ("deepseek", "deepseek-reasoner"),
    ],
)
def test_models_are_found_under_the_names_of_their_providers(provider: str, model: str) -> None:
    price = read_price(provider, model)
    assert price is not None
    assert price.input
    assert price.output
    assert price.context


@pytest.mark.parametrize("model", ["no-such-model", "", "sample_spec"])
def test_an_unknown_model_has_no_price(model: str) -> None:
    assert read_price("openrouter", model) is None


@pytest.mark.parametrize(
    ("price", "usage", "cost"),
    [
        (Price(1.0, 10.0), Usage(5, 3, 2, 1), 35.0),
        (Price(1.0, 10.0, cached=0.5), Usage(5, 3, 2, 1), 34.0),
        (Price(1.0, 10.0, cached=0.0), Usage(5, 3, 2, 1), 33.0),
        (Price(1.0, 10.0, reasoning=20.0), Usage(5, 3, 2, 1), 45.0),
        (Price(1.0, 10.0, written=1.25), Usage(9, 3, 2, written=4), 40.0),
        (Price(1.0, 10.0, cached=0.5), Usage(9, 3, 2, written=4), 38.0),
        (Price(0.0, 0.0), Usage(5, 3), 0.0),
        (Price(None, 10.0), Usage(5, 3), None),
        (Price(context=8192), Usage(5, 3), None),
    ],
)
def test_cached_written_and_reasoning_tokens_have_their_own_price(price: Price, usage: Usage, cost: float | None) -> None:
    assert price.cost(usage) == cost


async def test_a_table_answers_again_from_memory() -> None:
    table = PriceTable()
    first = await table.lookup("openai", "gpt-4o")
    assert first is not None
    assert await table.lookup("openai", "gpt-4o") is first


async def test_a_table_keeps_a_bounded_number_of_models() -> None:
    table = PriceTable()
    first = await table.lookup("openai", "gpt-4o")
    for number in range(NAMES_LIMIT):
        assert await table.lookup("openai", f"no-such-model-{number}") is None
    again = await table.lookup("openai", "gpt-4o")
    assert again == first
    assert again is not first


def test_a_price_costs_little_memory_and_no_import_of_litellm() -> None:
    program = """
import sys, tracemalloc
from agent_server.gateway.prices import read_price
tracemalloc.start()
assert read_price("openai", "gpt-4o")
kept, peak = tracemalloc.get_traced_memory()
assert "litellm" not in sys.modules
assert peak < 10e6 and kept < 1e6, (kept, peak)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
