"""A config dataclass as JSON Schema: what forms and descriptions of the interface are made of."""

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin

from sfumato.core.config import fields, to_dict

PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema(cls: type) -> dict[str, Any]:
    """Its fields with their types, defaults and documentation; no others are allowed."""
    properties, required = {}, []
    for field in fields(cls):
        properties[field.name] = {**_of(field.type), "description": field.doc}
        if field.required:
            required.append(field.name)
        else:
            properties[field.name]["default"] = to_dict(field.default)
    return {
        "title": cls.__name__, "type": "object", "properties": properties, "required": required,
        "additionalProperties": False,
    }  # fmt: skip


def _of(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        options = [{"type": "null"} if option is type(None) else _of(option) for option in arguments]
        return {"anyOf": options}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        if arguments[-1] is ...:
            return {"type": "array", "items": _of(arguments[0])}
        return {"type": "array", "prefixItems": [_of(a) for a in arguments], "minItems": len(arguments),
                "maxItems": len(arguments)}  # fmt: skip
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return schema(hint)
    return {"type": PLAIN[hint]}
