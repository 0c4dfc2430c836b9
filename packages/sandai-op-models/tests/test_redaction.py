"""No password in any text."""

import copy
import pickle
import time
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandai.op.models import (
    ConfigurationError,
    InvalidTaskError,
    OperatorConnectionError,
    TaskExecutionError,
    TaskResult,
    error_reply,
    redact,
)

CANARY = "CaNaRy"
#: Characters that end, begin or escape something somewhere, and any others.
ODD = st.text(
    st.one_of(
        st.sampled_from("@:/?#&=%;,'\"\\ \n\t[]{}()<>*$^|+-._~"),
        st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Z")),
    ),
    max_size=6,
)
#: A canary between odd characters, twice, so that half a password is found as well.
PASSWORDS = st.builds(lambda a, b, c: f"{a}{CANARY}{b}{CANARY}{c}", ODD, ODD, ODD)
USERS = st.sampled_from(["", "user", "user.name@example.com", "us-er_1"])
SCHEMES = st.sampled_from(["redis", "rediss", "redis+socket", "amqp", "sentinel", "x-y.z", "1p"])
URLS = st.builds(
    lambda scheme, user, password: f"{scheme}://{user}:{password}@host:6379/0",
    SCHEMES,
    USERS,
    PASSWORDS,
)


def texts(error: Exception) -> str:
    """Return everything of an error that may be read or logged, copies included."""
    kept = pickle.loads(pickle.dumps(error))
    found = [str(error), repr(error), repr(error.args), repr(vars(error))]
    return "\n".join([*found, str(kept), repr(copy.deepcopy(error)), repr(error_reply(error))])


@given(URLS)
def test_no_password_in_a_configuration_error(url: str) -> None:
    """A URL's password is in no text of a ``ConfigurationError``, whatever its characters."""
    error = ConfigurationError("broker_url", url, f"{url} has no host")
    assert CANARY not in texts(error)
    assert error.setting == "broker_url"


@given(URLS, URLS)
def test_no_password_in_a_connection_error(url: str, other: str) -> None:
    """Passwords are in no text of an ``OperatorConnectionError``, one URL in it or two."""
    error = OperatorConnectionError("clip", "v1", f"broker {url} refused; backend {other}, too")
    assert CANARY not in texts(error)
    assert "refused" in str(error) or "too" in str(error)


@given(URLS)
def test_no_password_in_nested_options(url: str) -> None:
    """Values and keys of mappings, sequences and sets are masked at any depth."""
    value = {"masters": [{"url": url}, (url, {url}, frozenset({url}))], url: MappingProxyType({})}
    error = ConfigurationError("broker_transport_options", {**value, "m": {"n": [value]}}, "is odd")
    assert CANARY not in texts(error)


@given(ODD.map(lambda text: "".join(text.split()).replace("&", "")), SCHEMES)
def test_no_password_in_a_query(odd: str, scheme: str) -> None:
    """A password among a URL's parameters is masked, and the parameters after it are not."""
    url = f"{scheme}://host:6379/0?password={CANARY}{odd}{CANARY}&db=15"
    assert CANARY not in texts(ConfigurationError("broker_url", url, f"{url} is odd"))
    assert redact(url).endswith("&db=15")


@given(st.one_of(URLS, ODD, st.text()))
def test_redaction_is_idempotent(value: str) -> None:
    """What is redacted stays as it is when redacted again."""
    once = redact(value)
    assert redact(once) == once


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:pw@h:1/0", "redis://:**@h:1/0"),
        ("amqp://guest:pw@h//", "amqp://guest:**@h//"),
        ("amqp://bob@example.com:pw@h", "amqp://**@h"),
        ("https://token@h/path", "https://**@h/path"),
        (":pw@h:6379", ":**@h:6379"),
        ("user:pw@h:6379", "user:**@h:6379"),
        ("redis:/:pw@h", "redis:**@h"),
        ("redis://:p w@h", "redis://:**@h"),
        ("sentinel://:pw@h1:1;sentinel://:pw2@h2:2", "sentinel://:**@h2:2"),
        ("redis://h?password=a@b&db=1", "redis://**@&db=1"),
        ("redis://h/0?ssl_keyfile_password=pw,)&x=1", "redis://h/0?ssl_keyfile_password=**&x=1"),
        ("redis://u:x&password=y@h", "redis://u:**@"),
        ("{'password': 'p w', 'host': 'h'}", "{'password': '**', 'host': 'h'}"),
        ('{"api_key": "it\\"s", "host": "h"}', '{"api_key": "**", "host": "h"}'),
        ("Error 111 connecting to h:6379. Refused.", "Error 111 connecting to h:6379. Refused."),
        ("max_tokens: 4096", "max_tokens: 4096"),
        (b"redis://:pw@h", "redis://:**@h"),
        ({"password": "pw", "db": 1}, {"password": "**", "db": 1}),
        ({"password": 12345, "secret": ["a"]}, {"password": "**", "secret": "**"}),
        ({"password": None, "use_token": True}, {"password": None, "use_token": True}),
        (("redis://:pw@h", 1), ("redis://:**@h", 1)),
        (8, 8),
        (1.5, 1.5),
        (True, True),
        (None, None),
    ],
    ids=repr,
)
def test_examples(value: Any, masked: Any) -> None:
    """Secrets are masked, and nothing around them that a reader needs."""
    found = redact(value)
    assert found == masked
    assert type(found) is type(masked)


def test_other_objects_are_kept_unless_their_repr_tells() -> None:
    """An object goes through unchanged; one whose repr holds a URL with a password does not."""
    plain, url = object(), ValueError("redis://:pw@h")
    assert redact(plain) is plain
    assert redact(url) == "ValueError('redis://:**@h')"


def test_cycles_and_depth_end() -> None:
    """A value that contains itself, or is nested ten thousand levels deep, is cut off."""
    cycle: dict[str, Any] = {"url": "redis://:CaNaRy@h"}
    cycle["self"] = [cycle]
    deep: Any = CANARY
    for _ in range(10_000):
        deep = [deep]
    for value in (cycle, deep):
        assert CANARY not in texts(ConfigurationError("options", value, "is odd"))


def test_an_assignment_is_redacted_as_well() -> None:
    """A field set later is masked like one passed to the constructor."""
    error = ConfigurationError("broker_url", "", "is empty")
    error.value = "redis://:CaNaRy@h"
    assert CANARY not in str(error)


def test_an_error_reply_tells_no_password() -> None:
    """What an operator answers for an exception holds no password, in message or details."""
    url = f"redis://:{CANARY}@h:6379/0"
    for error in (
        ConnectionError(f"{url} refused"),
        TaskExecutionError("t-1", url, {"url": url, "password": CANARY}),
    ):
        assert CANARY not in repr(error_reply(error))


@pytest.mark.parametrize(
    "unit",
    ["x", "token", "a-", "a:", "://", "'", "password='", "password=", "@:", '"\\'],
)
def test_time_is_linear(unit: str) -> None:
    """Two hundred thousand characters of anything take well under a second."""
    text = unit * (200_000 // len(unit))
    start = time.perf_counter()
    redact(text)
    redact(f"{text}@h")
    assert time.perf_counter() - start < 2


def test_an_invalid_value_that_is_quoted() -> None:
    """What an InvalidTaskError quotes of a value has no password."""
    with pytest.raises(InvalidTaskError) as caught:
        TaskResult(results={"url": "https://me:canary@h/\udcff"}).to_reply()
    assert caught.value.path == "results.url"
    assert "canary" not in f"{caught.value!s} {caught.value!r} {caught.value.reason}"
