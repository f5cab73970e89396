"""An OpenAPI document as one page of HTML: no script, nothing from another host, read and printed like a book."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

Json = dict[str, Any]
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
section { border-top: 1px solid #8886; margin-top: 2rem; }
h2 code { font-size: 1.1rem; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #8883; padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top; }
td:first-child { white-space: nowrap; }
"""
POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""The page's Content-Security-Policy."""


def page(document: Json) -> str:
    """The whole page."""
    info = document["info"]
    sections = "".join(
        _section(document, method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(info["title"])} API</title><style>{_STYLE}</style></head>
<body><h1>{escape(info["title"])} {escape(info["version"])}</h1>
<p>{_prose(info["description"])} For programs: <a href="openapi.json">openapi.json</a>.</p>
{sections}</body></html>
"""


def _section(document: Json, method: str, path: str, operation: Json) -> str:
    key = "needs a key" if operation.get("security", True) else "needs no key"
    parameters = [(one["name"], one["in"], _facts(document, one["schema"]), one.get("description", ""))
                  for one in operation.get("parameters", [])]  # fmt: skip
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    answers = [(status, one["description"]) for status, one in operation["responses"].items()]
    first = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return f"""<section><h2><code>{method.upper()} {escape(path)}</code></h2>
<p><b>{escape(operation.get("summary", ""))}</b>; {key}. {_prose(operation.get("description", ""))}</p>
{_table("Parameters", parameters)}{_table("Body", list(_members(document, body)))}{_table("Answers", answers)}
{_table("Body of 200", list(_members(document, first)))}</section>"""


def _table(title: str, rows: Sequence[tuple[str, ...]]) -> str:
    lines = ("<tr>" + "".join(_cell(number, cell) for number, cell in enumerate(row)) + "</tr>" for row in rows)
    return f"<h3>{title}</h3><table>{''.join(lines)}</table>" if rows else ""


def _cell(number: int, text: str) -> str:
    return f"<td><code>{escape(text)}</code></td>" if number == 0 else f"<td>{_prose(text)}</td>"


def _prose(text: str) -> str:
    """Text whose `words in backquotes` become code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))


def _members(document: Json, schema: Json, before: str = "") -> Iterator[tuple[str, str, str]]:
    """Name, facts and description of every member, those of members too."""
    schema = _resolved(document, schema)
    if schema.get("type") == "array":
        yield from _members(document, schema["items"], f"{before}[].")
    for name, one in schema.get("properties", {}).items():
        one = _resolved(document, one)
        required = "required; " if name in schema.get("required", []) else ""
        yield before + name, required + _facts(document, one), one.get("description", "")
        yield from _members(document, one.get("items", one), f"{before}{name}{'[]' if 'items' in one else ''}.")


def _facts(document: Json, schema: Json) -> str:
    """Type and limits, in words."""
    schema = _resolved(document, schema)
    if "anyOf" in schema:
        kinds = " or ".join(_facts(document, one) for one in schema["anyOf"])
        return f"{kinds}, default {schema['default']}" if "default" in schema else kinds
    words = [str(schema.get("type", "anything"))]
    if "enum" in schema:
        words = ["one of " + ", ".join(str(one) for one in schema["enum"] if one is not None)]
    for fact, word in (("minimum", "from"), ("maximum", "to"), ("multipleOf", "multiple of"),
                       ("maxLength", "characters at most"), ("pattern", "form"), ("default", "default")):  # fmt: skip
        if fact in schema:
            words.append(f"{word} {schema[fact]}")
    return ", ".join(words)


def _resolved(document: Json, schema: Json) -> Json:
    """What a reference stands for."""
    if "$ref" not in schema:
        return schema
    found: Any = document
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)
