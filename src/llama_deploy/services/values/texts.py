"""The text of any value: what clients get of a result without a JSON form."""

from __future__ import annotations

from llama_deploy.codec import qualified_name


def text_of(value: object) -> str:
    """Return `str(value)`, or what stands for it if the code of its class fails."""
    try:
        text = str(value)
    except Exception as exc:  # noqa: BLE001 - the code of any class
        text = f"<{qualified_name(type(value))}, whose text failed with {type(exc).__name__}: {exc}>"
    return valid_text(text)


def valid_text(text: str) -> str:
    """Return a text that is valid UTF-8: halves of characters are joined, and single ones are escaped."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return joined.encode("utf-8", "backslashreplace").decode()
    return text
