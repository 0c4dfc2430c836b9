"""What URLs of every kind have: a scheme, credentials that are encoded, TLS parameters."""

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from sandai.op.models import ConfigurationError

HOW_TO_ENCODE = "special characters in user and password are written percent-encoded (# as %23)"
#: Words of a URL that mean yes.
TRUE = frozenset({"1", "true", "yes", "on"})
_CERT_REQS = {
    "required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
}
_TLS_OPTIONS = (
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)


def scheme_of(url: str) -> str:
    """Return a URL's scheme in lower case, ``""`` without one."""
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator else ""


def tls_parameters(
    setting: str, url: str, scheme: str, said: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the ``ssl_*`` parameters that are *said*, checked; ``None`` without TLS."""
    given = {name: said[name] for name in _TLS_OPTIONS if said.get(name) is not None}
    if scheme != "rediss":
        if given and scheme != "sentinel":
            raise ConfigurationError(
                setting, url, f"{', '.join(given)} belongs to TLS: use the scheme rediss://"
            )
        if not given:
            return None
    tls = {name: unquote(v) if isinstance(v, str) else v for name, v in given.items()}
    required = tls.get("ssl_cert_reqs", "required")
    if isinstance(required, str):
        word = required.lower().removeprefix("cert_")
        if word not in _CERT_REQS:
            raise ConfigurationError(
                setting, url, f"ssl_cert_reqs={required!r} must be required, optional or none"
            )
        required = _CERT_REQS[word]
    tls["ssl_cert_reqs"] = required
    hostname = tls.get("ssl_check_hostname", required == ssl.CERT_REQUIRED)
    tls["ssl_check_hostname"] = (
        hostname.lower() in TRUE if isinstance(hostname, str) else bool(hostname)
    )
    return tls
