"""`GET /v1/models`: what answers here."""

import hashlib
import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zturbo.api.routes import Router
from zturbo.api.schemas import MODEL
from zturbo.api.tags import known
from zturbo.engine.worker import Worker
from zturbo.params import shown
from zturbo.safety.checker import described as checker_facts

router = Router()


def described(request: Request) -> dict[str, Any]:
    """The one model that is served; its real name and version once it is loaded."""
    worker: Worker = request.app.state.service.worker
    engine = worker.engine
    checker = {"name": "still loading"} if engine is None else checker_facts(worker.safety.checker)
    description = "still loading" if engine is None else engine.model.description
    tags = [] if engine is None else [engine.model.version, *(["embedded", "small"] if engine.model.is_nano else [])]
    info = {
        "name": "z-image-turbo",
        "developer": "Alibaba Cloud",
        "description": description,
        "safety_checker": checker,
        "prompt_guard": {"name": worker.safety.guard.name if worker.safety.guard else "none"},
        "prompt_expansion": {"provider": request.app.state.service.expander},
    }
    return {
        "id": MODEL,
        "object": "model",
        "type": "image",
        "info": info,
        "tags": tags,
        "aliases": list(request.app.state.models[1:]),
    }


@router.route("/v1/models", "GET")
@router.route("/models", "GET", include_in_schema=False)
async def list_models(request: Request) -> Response:
    """The models that can be asked for; needs no key."""
    return _tagged(request, {"object": "list", "data": [described(request)]})


@router.route("/model/{name:path}", "GET")
async def one_model(request: Request) -> Response:
    """One model by its id or an alias."""
    return _tagged(request, {"object": "model", "data": _named(request)})


@router.route("/v1/models/{name:path}", "GET", include_in_schema=False)
@router.route("/models/{name:path}", "GET", include_in_schema=False)
async def retrieved_model(request: Request) -> Response:
    """The same as OpenAI's clients ask and read it: `client.models.retrieve`."""
    return _tagged(request, _named(request))


def _named(request: Request) -> dict[str, Any]:
    """The model that the path names.

    Raises:
        HTTPException: 404, it names no other.
    """
    name = request.path_params["name"]
    if name not in request.app.state.models:
        raise HTTPException(404, f"no model {shown(name)}; there is {MODEL}")
    return described(request)


def _tagged(request: Request, body: dict[str, Any]) -> Response:
    """The body with a weak ETag, or 304 for a client that has it already."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
    headers = {"etag": f'W/"{digest}"', "cache-control": "no-cache"}
    if known(request.headers.get("if-none-match"), headers["etag"]):
        return Response(status_code=304, headers=headers)
    return JSONResponse(body, headers=headers)
