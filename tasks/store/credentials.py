"""Keys and signatures in URLs: found, so that a location with one is refused, and taken out of what is shown.

Credentials come from the environment. A location is recorded, logged and handed to Prefect, so none may hold a secret.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

STORE_OPTIONS = frozenset(
    {
        "allow_bucket_creation",
        "allow_bucket_deletion",
        "allow_delayed_open",
        "endpoint_override",
        "region",
        "scheme",
        "smart_defaults",
        "tls_ca_file_path",
        "tls_verify_certificates",
    }
)
"""All that ``pyarrow.fs`` takes after the ``?`` of an s3:// URL; no secret is among them."""
OUR_OPTIONS = frozenset({"range"})
"""Options of ours beside them."""
HIDDEN = "***"
_URL = re.compile(r"([a-z][a-z0-9+.-]{0,31})://([^\s'\"<>]*)", re.IGNORECASE)
"""Of a bounded scheme: in a long name without any, each letter could else begin one, in quadratic time."""
_BUCKET = re.compile(r"[\w.\-*\[\]{},!]*")
_HOST = re.compile(r"(?:[^:/?#@]*|\[[0-9a-fA-F:]*\])(?::[0-9]*)?")
_SECRET = re.compile(r"key|secret|token|sig|cred|passw|pwd|auth|x-amz|x-goog", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text with ``***`` in place of user names, passwords, keys and signatures in the URLs within it."""
    return _URL.sub(_shown, text)


def has_secret(url: str) -> bool:
    """Does a location hold what may not be recorded?"""
    return redacted(url) != url


def _shown(found: re.Match[str]) -> str:
    scheme, is_store = found[1], found[1].lower() == "s3"
    path, *options = re.split(r"([?#])", found[2])
    host, slash, key = path.partition("/")
    if not (_BUCKET if is_store else _HOST).fullmatch(host):  # a secret may hold a slash: what follows may be of it
        host, slash, key = HIDDEN + "@" * ("@" in path) + path.rpartition("@")[2] * ("@" in path), "", ""
    shown = (_option(option, is_store) for part in options for option in re.split(r"([?#&;])", part))
    return f"{scheme}://{host}{slash}{key}{''.join(shown)}"


def _option(option: str, is_store: bool) -> str:
    name, equals, value = option.partition("=")
    if is_store:
        is_harmless = option in "?#&;" or (name in STORE_OPTIONS | OUR_OPTIONS and "@" not in unquote(value))
    else:
        is_harmless = not equals or not _SECRET.search(unquote(name))
    return option if is_harmless else f"{name if equals else ''}{equals}{HIDDEN}"
