from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_server.gateway.litellm_schemas import NODES_LIMIT, googles, inlined

TREE = {"type": "object", "properties": {"name": {"type": "string"}, "left": {"$ref": "#/$defs/Tree"}}}


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("reference", "names", "found"),
    [
        ("#/$defs/Name", {"$defs": {"Name": {"type": "string"}}}, {"type": "string"}),
        ("#/definitions/a~1b~0", {"definitions": {"a/b~": {"enum": [1]}}}, {"enum": [1]}),
        ("#/$defs/Tree", {"$defs": {"Tree": TREE}}, of(name={"type": "string"}, left={"type": "object"})),
        ("#/$defs/None", {"$defs": {}}, {"type": "object"}),
        ("#/type/x", {}, {"type": "object"}),
        ("https://example.org/schema", {}, {"type": "object"}),
        ("#", {}, of(value={"type": "object"})),
    ],
)
def test_a_reference_is_replaced_by_what_it_names(reference: str, names: dict[str, Any], found: dict[str, Any]) -> None:
    assert inlined({**of(value={"$ref": reference}), **names}) == of(value=found)


def test_what_stands_beside_a_reference_counts() -> None:
    schema = {**of(value={"$ref": "#/$defs/Name", "description": "Whose"}), "$defs": {"Name": {"type": "string", "description": "A name"}}}
    assert inlined(schema) == of(value={"type": "string", "description": "Whose"})


def test_properties_may_be_named_like_keywords() -> None:
    schema = of(**{name: {"type": "string"} for name in ("$ref", "$defs", "const", "enum", "anyOf", "items", "properties", "required")})
    assert inlined(schema) == googles(schema) == schema


def test_references_that_double_do_not_fill_the_memory() -> None:
    names = {f"T{n}": {"anyOf": [{"$ref": f"#/$defs/T{n + 1}"}, {"$ref": f"#/$defs/T{n + 1}"}]} for n in range(40)}
    assert str(inlined({"$defs": names, "anyOf": [{"$ref": "#/$defs/T0"}]})).count("anyOf") < 2 * NODES_LIMIT


ANY = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}, {"type": "object"}]}


@pytest.mark.parametrize(
    ("schema", "plain"),
    [
        (True, ANY),
        ({}, ANY),
        ({"const": "a"}, {"type": "string", "enum": ["a"]}),
        ({"const": 3}, {"type": "integer"}),
        ({"enum": [True, False]}, {"type": "boolean"}),
        ({"type": "integer", "enum": [1, 2]}, {"type": "integer"}),
        ({"enum": ["a", 1]}, {"type": "string"}),
        ({"enum": ["", "a"]}, {"type": "string"}),
        ({"type": ["string", "null"], "enum": ["a", None]}, {"type": "string", "enum": ["a"], "nullable": True}),
        ({"oneOf": [{"type": "string"}, {"const": 1}]}, {"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        ({"type": "array", "items": [{"type": "string"}, True]}, {"type": "array", "items": {"anyOf": [{"type": "string"}, ANY]}}),
        ({"type": "array", "prefixItems": [{"const": "a"}]}, {"type": "array", "items": {"type": "string", "enum": ["a"]}}),
        ({"type": "array", "items": {"enum": ["a"]}}, {"type": "array", "items": {"type": "string", "enum": ["a"]}}),
        ({**of(a={"type": "string"}), "required": ["a", "b"]}, {**of(a={"type": "string"}), "required": ["a"]}),
        ({"type": "object", "properties": None, "required": None}, {"type": "object"}),
        (
            {"description": "Both", "allOf": [of(a={"type": "string"}), {**of(b=True), "required": ["a"], "description": "One"}]},
            {"description": "Both", **of(a={"type": "string"}, b=ANY), "required": ["a"]},
        ),
    ],
)
def test_google_is_told_in_its_own_words(schema: Any, plain: dict[str, Any]) -> None:
    assert googles(schema) == plain


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["string", "object", "#/$defs/a", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "items", "anyOf", "allOf", "enum", "$ref", "$defs", "required", "a"]), inner
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["type", "properties", "items", "anyOf", "allOf", "enum", "$ref", "$defs", "required"]), JSON))
def test_no_schema_breaks_the_translation(schema: dict[str, Any]) -> None:
    googles(inlined(schema))
