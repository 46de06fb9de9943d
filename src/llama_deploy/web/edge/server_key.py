"""Keys in the settings of servers."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, SecretStr

MIN_KEY_CHARACTERS: Final = 32
"""How long a key in the settings must be."""

_KEY: Final = re.compile(r"[\x21-\x7e]+")


def _check_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if len(text) < MIN_KEY_CHARACTERS or not _KEY.fullmatch(text):
        raise ValueError(
            f"must have at least {MIN_KEY_CHARACTERS} characters, in ASCII and without spaces, such as the"
            " output of `openssl rand -hex 32`"
        )
    return key


ServerKey = Annotated[SecretStr, AfterValidator(_check_key)]
"""A key in the settings of a server. It appears in no `repr`, log or error."""
