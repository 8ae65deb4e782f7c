"""Keeps secrets out of what is shown: tokens, and passwords and user names in addresses. Pure."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tidegate.settings import Settings

__all__ = ["Mask"]

_HIDDEN = "***"
_SHORTEST = 4
"""A shorter secret is hidden where it stands in an address or a token's setting, but not wherever its letters occur."""

_SECRET_QUERY = re.compile(r"(?i)([?&](?:\w*password|\w*username|token|secret|key)=)[^&#\s]*")
_USER_INFO = re.compile(r"(?<=://)[^/\s?#]*@")


class Mask:
    """Hides the secrets of these settings in any text, an error of a library included."""

    def __init__(self, settings: Settings) -> None:
        found = {secret for secret in _secrets(settings) if len(secret) >= _SHORTEST}
        self._secrets = sorted(found, key=len, reverse=True)  # a secret that holds another goes first

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        text = _SECRET_QUERY.sub(rf"\1{_HIDDEN}", _USER_INFO.sub(f"{_HIDDEN}@", text))
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return text


def _secrets(value: Any, name: str = "") -> Iterator[str]:
    if is_dataclass(value):
        for field in fields(value):
            yield from _secrets(getattr(value, field.name), field.name)
    elif isinstance(value, tuple):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _secrets(item, name)
    elif isinstance(value, str):
        if name.endswith("token") or name == "keys":
            yield value
        elif "://" in value:
            yield from _in_address(value)


def _in_address(address: str) -> Iterator[str]:
    try:
        parts = urlsplit(address)
    except ValueError:
        return
    user_info = parts.netloc.rpartition("@")[0]
    password = user_info.partition(":")[2]
    yield from (password, unquote(password))
    for name, value in parse_qsl(parts.query):
        if _SECRET_QUERY.match(f"?{name}="):
            yield value
