"""The API's document as one page for people, without anything that is fetched from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any, Final

Json = dict[str, Any]

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --dim: #888; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .3rem; font-size: 1.15rem; }
h2 code { font-size: 1rem; }
.method { display: inline-block; min-width: 4.2rem; font-weight: 600; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-top: 1px solid var(--line); }
th { color: var(--dim); font-weight: 500; }
td:first-child { white-space: nowrap; }
.dim { color: var(--dim); }
nav a { display: inline-block; margin-right: 1rem; }
pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); border-radius: .4rem; }
"""
_EXAMPLE: Final = """curl -H "Authorization: Bearer $REELMESH_TOKEN" \\
  -H 'Content-Type: application/json' \\
  -d '{"prompt": "a big red ball bouncing"}' \\
  https://…/v1/videos"""


_CODE = re.compile(r"`([^`]+)`")


def page(document: Json) -> str:
    """The page; everything in it is escaped."""
    info = document["info"]
    operations = [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]
    links = "".join(
        f'<a href="#{escape(o["operationId"])}">{escape(o["summary"])}</a>'
        for _, _, o in operations
    )
    schemas = document["components"]["schemas"]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} API <span class=dim>{escape(info['version'])}</span></h1>"
        f"<p>{_prose(info['description'])}</p>"
        f"<p>For programs: <a href=openapi.json>openapi.json</a></p><nav>{links}</nav>"
        f"<pre>{escape(_EXAMPLE)}</pre>"
        + "".join(_operation(method, path, o, schemas) for method, path, o in operations)
        + "</html>"
    )


def _operation(method: str, path: str, operation: Json, schemas: Json) -> str:
    return (
        f'<h2 id="{escape(operation["operationId"])}">{escape(operation["summary"])}</h2>'
        f"<p><code><span class=method>{method}</span>{escape(path)}</code></p>"
        f"<p>{_prose(operation['description'])}</p>"
        + _parameters(operation["parameters"])
        + _body(operation.get("requestBody"), schemas)
        + _answers(operation["responses"])
    )


def _parameters(parameters: list[Json]) -> str:
    rows = [(p["name"], p["in"], p["description"]) for p in parameters]
    return _table(("parameter", "in", ""), rows)


def _body(body: Json | None, schemas: Json) -> str:
    if body is None:
        return ""
    reference = next(iter(body["content"].values()))["schema"]["$ref"]
    schema = schemas[reference.rpartition("/")[2]]
    rows = [
        (
            name + (" *" if name in schema["required"] else ""),
            " or ".join(kind) if isinstance(kind := field["type"], list) else kind,
            field["description"],
        )
        for name, field in schema["properties"].items()
    ]
    return _table(("field (* needed)", "type", ""), rows)


def _answers(answers: Json) -> str:
    return _table(
        ("answer", ""), [(status, each["description"]) for status, each in answers.items()]
    )


def _prose(text: str) -> str:
    """Text, escaped, with what stands between backticks as code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<th>{escape(each)}</th>" for each in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{_prose(each)}</td>" for each in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{cells}</tr>{lines}</table>"
