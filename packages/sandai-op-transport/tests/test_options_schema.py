"""Options against a schema: the path, the complaint, and schemas that are none."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandai.op.models import ConfigurationError, InvalidTaskError
from sandai.op.transport import MessageFactory, TaskBuilder, TaskControls, client_app, resolve
from sandai.op.transport._options_schema import options_check

SEGMENT = {
    "type": "object",
    "properties": {"start": {"type": "number", "minimum": 0}, "end": {"type": "number"}},
    "required": ["start", "end"],
}
SCHEMA = {
    "type": "object",
    "properties": {
        "segments": {"type": "array", "items": SEGMENT},
        "format": {"enum": ["mp4", "webm"]},
        "password": {"type": "integer"},
    },
    "additionalProperties": False,
}


def refused(schema: Any, options: Any) -> tuple[str, str]:
    """Return the path and the reason of what a schema refuses."""
    with pytest.raises(InvalidTaskError) as caught:
        options_check(schema)(options)
    return caught.value.path, caught.value.reason


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"segments": []},
        {"segments": [{"start": 0, "end": 1.5, "more": None}], "format": "webm"},
        {"segments": ({"start": 0, "end": 1},)},
    ],
)
def test_what_fits(options: Any) -> None:
    """Options that fit are let through; a tuple is a list on the wire."""
    options_check(SCHEMA)(options)


@pytest.mark.parametrize(
    ("options", "path", "reason"),
    [
        ({"segments": [{"start": 0, "end": "x"}]}, "options.segments[0].end", "'number'"),
        ({"segments": [{"start": 0, "end": True}]}, "options.segments[0].end", "'number'"),
        ({"segments": [{"start": -1, "end": 1}]}, "options.segments[0].start", "minimum of 0"),
        ({"segments": ({"start": 0, "end": 1}, {"start": 0})}, "options.segments[1]", "'end'"),
        ({"segments": {}}, "options.segments", "'array'"),
        ({"format": "avi"}, "options.format", "['mp4', 'webm']"),
        ({"fromat": "mp4"}, "options", "'fromat'"),
    ],
)
def test_what_does_not(options: Any, path: str, reason: str) -> None:
    """The path leads to the value, and the reason says what the schema wants."""
    found, said = refused(SCHEMA, options)
    assert found == path
    assert reason in said


STEPS = st.lists(
    st.one_of(st.integers(0, 3), st.text(min_size=1).filter(lambda s: s.isprintable())),
    max_size=5,
)


@given(steps=STEPS)
def test_paths(steps: list[Any]) -> None:
    """Wherever the fault is, the path names each step to it."""
    schema: Any = {"type": "integer"}
    value: Any = "wrong"
    for step in reversed(steps):
        if isinstance(step, int):
            schema = {"type": "array", "items": {}, "prefixItems": [{}] * step + [schema]}
            value = [None] * step + [value]
        else:
            schema, value = {"properties": {step: schema}}, {step: value}
    names = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in ["o", *steps])
    path, reason = refused({"properties": {"o": schema}}, {"o": value})
    assert path == f"options{names}"
    assert "'wrong' is not of type 'integer'" in reason


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.recursive(
        st.sampled_from([True, 3, "object", "x", None, [], "#", "#/a", "("]),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "properties",
                        "items",
                        "$ref",
                        "$id",
                        "pattern",
                        "enum",
                        "anyOf",
                        "a",
                        "required",
                        "additionalProperties",
                        "not",
                        "$schema",
                        "$dynamicRef",
                        "minimum",
                    ]
                ),
                inner,
            )
        ),
    ),
)
def test_any_schema_and_any_options(value: Any, schema: Any) -> None:
    """Whatever an operator calls a schema, nothing but a typed error comes of it."""
    try:
        options_check(schema)({"a": value})
    except (ConfigurationError, InvalidTaskError):
        return


def test_values_are_shortened_and_passwords_left_out() -> None:
    """A complaint is short, however long the value, and says no password."""
    _, said = refused(SCHEMA, {"segments": [{"start": 0, "end": "x" * 5000}]})
    assert len(said) < 200
    assert said.endswith("is not of type 'number'")
    path, said = refused(SCHEMA, {"password": "geheim"})
    assert path == "options.password"
    assert "geheim" not in said
    deep = {"items": {"type": "integer"}, "properties": {"a": {"type": "integer"}}}
    for value in (["geheim"], {"a": "geheim"}):
        _, said = refused({"properties": {"password": deep}}, {"password": value})
        assert "geheim" not in said
    most = {"prefixItems": [{}], "items": False}
    _, said = refused({"properties": {"password": most}}, {"password": ["a", "geheim"]})
    assert said == "does not fit the operator's options_schema (items)"
    _, said = refused({"properties": {"login": {"type": "array"}}}, {"login": {"token": "geheim"}})
    assert "geheim" not in said


@pytest.mark.parametrize("schema", [None, {}, True])
def test_no_schema(schema: Any) -> None:
    """An operator that says nothing of its options takes all."""
    options_check(schema)({"anything": object()})


@pytest.mark.parametrize(
    "schema",
    [[], "object", 7, {"type": "objct"}, {"properties": []}, {"$schema": []}, {"pattern": "("}],
)
def test_what_is_no_schema(schema: Any) -> None:
    """It is said at once, with the setting that switches the check off."""
    with pytest.raises(ConfigurationError, match=r"options_schema .*validate_options") as caught:
        options_check(schema)
    assert caught.value.setting == "validate_options"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"properties": {"a": {"$ref": "other.json"}}},
        {"$schema": "http://127.0.0.1:9/draft", "$dynamicRef": "http://127.0.0.1:9/x"},
    ],
)
def test_references_that_lead_nowhere(schema: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched for a reference, and one without an end ends."""

    def fetched(*_: Any, **__: Any) -> None:
        raise AssertionError("it goes out")

    monkeypatch.setattr("socket.socket.connect", fetched)
    monkeypatch.setattr("urllib.request.urlopen", fetched)
    path, said = refused(schema, {"a": 1})
    assert path == "options"
    assert "cannot be checked by the operator's options_schema" in said


def test_drafts() -> None:
    """Each schema is read by its own draft."""
    newer = {"properties": {"a": {"exclusiveMinimum": 3}}}
    older = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "properties": {"a": {"minimum": 3, "exclusiveMinimum": True}},
    }
    for schema in (newer, older):
        assert refused(schema, {"a": 3})[0] == "options.a"
        options_check(schema)({"a": 4})


# In a client's builder


def builder(**settings: Any) -> tuple[TaskBuilder, MessageFactory]:
    """Return a builder and what it builds with."""
    config = resolve("x", "v1", env={}, **settings)
    return TaskBuilder(config), MessageFactory(client_app(config), "msgpack")


def test_off() -> None:
    """Without the setting nothing is asked for and nothing is checked."""
    tasks, messages = builder()
    assert not tasks.wants_schema
    tasks.task(messages, "", [], {"format": 7}, TaskControls())


def test_on() -> None:
    """With it no task is built before the schema is known; a probe and ``desc`` are."""
    tasks, messages = builder(validate_options=True)
    asked: bool = tasks.wants_schema
    assert asked
    with pytest.raises(RuntimeError, match="schema"):
        tasks.task(messages, "", [], {}, TaskControls())
    tasks.probe(messages, "", 1.0)
    tasks.description(messages, "")
    tasks.learn_schema(SCHEMA)
    assert tasks.wants_schema is False
    tasks.task(messages, "", [], {"format": "mp4"}, TaskControls())
    with pytest.raises(InvalidTaskError, match=r"options\.format"):
        tasks.task(messages, "", [], {"format": 7}, TaskControls())
    tasks.probe(messages, "", 1.0)
    assert isinstance(tasks.item(messages, "", 3, ([], {"n": 1}), TaskControls()), InvalidTaskError)


def test_the_library_is_loaded_only_on_demand() -> None:
    """Importing transport, and making a configuration, loads no jsonschema."""
    code = (
        "import sys\n"
        "from sandai.op.transport import resolve\n"
        "resolve('x', 'v1', env={})\n"
        "assert not {'jsonschema', 'referencing'} & set(sys.modules)\n"
        "resolve('x', 'v1', env={}, validate_options=True)\n"
        "assert 'jsonschema' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
