"""JSON that keeps Python types, without pickle. Events, state and journals are stored in this form."""

from __future__ import annotations

from llama_deploy import workflow_library  # noqa: F401 - first, as it says why the library is not found
from llama_deploy.codec.exceptions import DescribedError
from llama_deploy.codec.serializer import TypedSerializer
from llama_deploy.codec.signing import Signer
from llama_deploy.codec.texts import text_of, valid_text
from llama_deploy.codec.type_registry import TypeRegistry, declared_types, qualified_name
from llama_deploy.codec.typed_json import TypedJson

__all__ = [
    "DescribedError",
    "Signer",
    "TypeRegistry",
    "TypedJson",
    "TypedSerializer",
    "declared_types",
    "qualified_name",
    "text_of",
    "valid_text",
]
