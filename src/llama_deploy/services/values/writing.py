"""How a service writes the values of its workflow as text, and verifies what it reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from pydantic import SecretStr
from workflows import Workflow

from llama_deploy.codec import Signer, TypedJson, TypedSerializer, TypeRegistry, declared_types


class Writing:
    """Writes values as typed JSON, and signs stored texts if the service has keys.

    Args:
        workflow: Its events and its state can be written and read.
        extra: Further classes.
        keys: The first key signs; the signature of any key is accepted. Empty: nothing is signed.
    """

    def __init__(
        self, workflow: Workflow, *, extra: Iterable[type] = (), keys: Sequence[SecretStr] = ()
    ) -> None:
        self._json = TypedJson(TypeRegistry(declared_types(workflow, extra)))
        self.classes = self._json.types.users_classes
        """The users' classes whose objects can be written, by qualified name."""
        self.serializer = TypedSerializer(self._json)
        self._signer = Signer(keys) if keys else None

    def noting(self, classes: dict[str, bool]) -> AbstractContextManager[None]:
        """See `TypedJson.noting`."""
        return self._json.noting(classes)

    def write(self, value: object, *, path: str) -> str:
        """Return a value as text.

        Raises:
            SerializationError: It cannot be written; the text names the place, which begins with `path`.
        """
        return self._json.dumps(value, path=path)

    def read(self, text: str) -> object:
        """Return the value of a text that `write` returned.

        Raises:
            SerializationError: It is damaged, or contains a class that is not declared.
        """
        return self._json.loads(text)

    def seal(self, text: str, *, context: str) -> str:
        """Return a text with its signature before it.

        Args:
            text: What is to be stored.
            context: Where it is stored; the signature is valid only there.
        """
        signature = "" if self._signer is None else self._signer.sign(text, context=context)
        return f"{signature}\n{text}"

    def open(self, sealed: str, *, context: str) -> str:
        """Return the text of a sealed text.

        Raises:
            SignatureError: The service has keys, and none of them signed this text for this context.
        """
        signature, _, text = sealed.partition("\n")
        if self._signer is not None:
            self._signer.verify(text, signature, context=context)
        return text

    @staticmethod
    def is_sealed(text: str) -> bool:
        """Return whether a text begins with the line of a signature, which may be empty."""
        return "\n" in text

    @staticmethod
    def signature(sealed: str) -> str:
        """Return the signature of a sealed text; empty if it is not signed."""
        return sealed.partition("\n")[0]
