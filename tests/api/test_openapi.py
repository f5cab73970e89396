"""The document that we publish, beside the published one and beside what the server does."""

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from tests.api.conftest import Instant, Server, serving
from tests.safety.stubs import StubChecker
from zturbo import api, params
from zturbo.api.openapi import document
from zturbo.api.schemas import MODEL, model_names
from zturbo.safety.checker import Safety

pytestmark = pytest.mark.anyio
SEED = json.loads(Path(__file__).with_name("seed_openapi.json").read_text("utf-8"))
PATH = "/v1/images/generations"
Json = dict[str, Any]


def ours(aliases: str = "") -> Json:
    return document("", model_names(aliases), {})


def routes() -> Iterator[Route]:
    """Every route of every file of zturbo.api."""
    for module in pkgutil.iter_modules(api.__path__, "zturbo.api."):
        router = getattr(importlib.import_module(module.name), "router", None)
        yield from (route for route in getattr(router, "routes", ()) if isinstance(route, Route))


def operation(whole: Json) -> Json:
    return whole["paths"][PATH]["post"]


def body(whole: Json) -> Json:
    return operation(whole)["requestBody"]["content"]["application/json"]["schema"]


def answer(whole: Json) -> Json:
    return operation(whole)["responses"]["200"]["content"]["application/json"]["schema"]


def missing(theirs: Any, found: Any, path: str = "") -> Iterator[str]:
    """Everything that stands in their schema and not, or not so, in ours; `required` of an answer may be longer."""
    if isinstance(theirs, dict):
        for name, value in theirs.items():
            here = f"{path}.{name}"
            if name == "description":
                continue
            if not isinstance(found, dict) or name not in found:
                yield f"{here} is missing"
            elif name == "required" and isinstance(value, list):
                yield from (f"{here} lacks {one}" for one in set(value) - set(found[name]))
            else:
                yield from missing(value, found[name], here)
    elif isinstance(theirs, list) and any(isinstance(one, dict) for one in theirs):
        for number, (one, other) in enumerate(zip(theirs, found, strict=True)):
            yield from missing(one, other, f"{path}[{number}]")
    elif theirs != found and not (path.endswith(".enum") and set(theirs) == set(found)):
        yield f"{path}: {found!r} in place of {theirs!r}"


def test_the_published_operation_is_in_ours_member_by_member() -> None:
    published = operation(SEED)
    assert list(missing(body(SEED), body(ours()))) == []
    assert list(missing(answer(SEED), answer(ours()))) == []
    assert set(body(SEED)["required"]) == set(body(ours())["required"])
    assert operation(ours())["operationId"] == published["operationId"]
    assert operation(ours())["requestBody"]["required"] is published["requestBody"]["required"]


def test_our_members_are_nowhere_narrower_than_published() -> None:
    """A limit that the published document does not have is one that it says in words."""
    stated = {"prompt": "pattern", "num_images": "multipleOf"}
    for name, theirs in body(SEED)["properties"].items():
        found = body(ours())["properties"][name]
        added = {fact for fact in found if fact not in theirs} - {"nullable", "description"}
        assert added <= {stated.get(name, "")}, name


@pytest.mark.parametrize(
    "change",
    [
        lambda schema: schema["properties"].pop("seed"),
        lambda schema: schema["properties"]["output_format"]["enum"].pop(),
        lambda schema: schema["properties"]["num_images"].update(maximum=5),
        lambda schema: schema["properties"]["image_size"]["anyOf"][0]["properties"]["width"].update(default=768),
        lambda schema: schema["required"].remove("prompt"),
    ],
)
def test_the_comparison_sees_a_difference(change: Any) -> None:
    found = body(ours())
    change(found)
    assert list(missing(body(SEED), found))


def test_limits_are_those_that_are_enforced() -> None:
    members = body(ours())["properties"]
    assert members["prompt"]["maxLength"] == params.MAX_PROMPT
    assert members["num_inference_steps"]["maximum"] == params.MAX_STEPS
    assert members["image_size"]["anyOf"][1]["enum"] == list(params.SIZES)


def test_aliases_are_named() -> None:
    assert "gpt-image-1" in body(ours("gpt-image-1"))["properties"]["model"]["description"]


async def test_every_member_of_an_answer_is_documented(engine: Instant) -> None:
    async with serving(engine, safety=Safety(StubChecker())) as server:
        told = (await server.client.post(PATH, json={"model": MODEL, "prompt": "a cat"})).json()
    assert {"safety", "prompt_expansion"} <= set(told) <= set(answer(ours())["properties"])
    for member in ("safety", "prompt_expansion"):
        assert set(told[member]) == set(answer(ours())["properties"][member]["properties"])


def test_every_reference_leads_somewhere() -> None:
    whole = ours()
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(whole)):
        found: Any = whole
        for part in reference.split("/"):
            found = found[part]


async def test_every_route_is_documented_and_every_document_is_a_route(server: Server) -> None:
    whole = (await server.client.get("/openapi.json")).json()
    documented = {
        (method.upper(), re.sub(r"\{.*\}", "{}", path))
        for path, methods in whole["paths"].items()
        for method in methods
    }
    served = {
        (method, re.sub(r"\{.*\}", "{}", route.path))
        for route in routes()
        if route.include_in_schema
        for method in route.methods or ()
    }
    assert served - documented == {("HEAD", path) for _, path in served - documented}
    assert documented <= served
    assert {path for method, path in served if method == "HEAD"} == {path for method, path in served if method == "GET"}


async def test_the_document_is_cached_by_its_etag(server: Server) -> None:
    first = await server.client.get("/openapi.json")
    again = await server.client.get("/openapi.json", headers={"if-none-match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


async def test_the_page_for_people_asks_no_other_host(server: Server) -> None:
    answered = await server.client.get("/docs")
    assert answered.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answered.headers["content-security-policy"]
    assert "<script" not in answered.text
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", answered.text)
    for name in body(ours())["properties"]:
        assert f"<code>{name}</code>" in answered.text
