"""What an AMQP URL says: checked before anything connects, and whom TLS is to trust."""

import ssl
from collections.abc import Mapping
from typing import Any

from kombu.utils.url import url_to_parts

from sandai.op.models import ConfigurationError

from ._url_parts import HOW_TO_ENCODE, scheme_of, tls_parameters

_AMQP = frozenset({"amqp", "amqps", "pyamqp"})


def is_amqp(url: str) -> bool:
    """Return whether the broker speaks AMQP."""
    return scheme_of(url) in _AMQP


def check_amqp_url(setting: str, url: str) -> None:
    """Raise :class:`ConfigurationError` for a URL that kombu could not read."""
    for each in url.split(";"):
        try:
            url_to_parts(each)
        except (ValueError, KeyError):
            # What the parser says may quote a part of the password.
            reason = f"cannot be read; {HOW_TO_ENCODE}"
            raise ConfigurationError(setting, url, reason) from None
    if scheme_of(url) == "amqps":
        tls_options(url, {}, setting)


def tls_options(url: str, given: Mapping[str, Any], setting: str = "broker_url") -> dict[str, Any]:
    """
    Return py-amqp's TLS options: the URL's ``ssl_*`` parameters, under those *given*.

    py-amqp verifies who signed the certificate; that it is the host's only when it is
    told the name. Of several hosts to try (``;``) it cannot be told each one's.
    """
    if "context" in given:
        return dict(given)
    first, *others = url.split(";")
    parts = url_to_parts(first)
    options = tls_parameters(setting, url, "rediss", parts.query) or {}
    options = {name.removeprefix("ssl_"): value for name, value in options.items()}
    checked = options.pop("check_hostname") and not others
    options |= given
    if checked and options["cert_reqs"] == ssl.CERT_REQUIRED:
        options.setdefault("server_hostname", parts.hostname)
    return options
