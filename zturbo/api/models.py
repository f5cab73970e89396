"""`GET /v1/models`: what answers here."""

import hashlib
import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zturbo.api.routes import Router
from zturbo.api.schemas import MODEL
from zturbo.engine.worker import Worker
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
    name = request.path_params["name"]
    if name not in request.app.state.models:
        raise HTTPException(404, f"no model {name!r}; there is {MODEL}")
    return _tagged(request, {"object": "model", "data": described(request)})


def _tagged(request: Request, body: dict[str, Any]) -> Response:
    """The body with a weak ETag, or 304 for a client that has it already (RFC 9110, 8.8.3 and 13.1.2)."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
    headers = {"etag": f'W/"{digest}"', "cache-control": "no-cache"}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if f'"{digest}"' in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return JSONResponse(body, headers=headers)
