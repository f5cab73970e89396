"""`GET /v1/models`: what answers here."""

from typing import Any

from fastapi import APIRouter, HTTPException, Request

from zturbo.api.schemas import MODEL, MODELS
from zturbo.engine.queue import AdmissionQueue

router = APIRouter()


def described(request: Request) -> dict[str, Any]:
    """The one model that is served; its real name and version once it is loaded."""
    engine = request.app.state.service.worker.engine
    description = "still loading" if engine is None else engine.model.description
    tags = [] if engine is None else [engine.model.version, *(["embedded", "small"] if engine.model.is_nano else [])]
    info = {"name": "z-image-turbo", "developer": "Alibaba Cloud", "description": description}
    return {"id": MODEL, "object": "model", "type": "image", "info": info, "tags": tags, "aliases": list(MODELS[1:])}


@router.get("/v1/models")
@router.get("/models", include_in_schema=False)
async def list_models(request: Request) -> dict[str, Any]:
    """The models that can be asked for; needs no key."""
    return {"object": "list", "data": [described(request)]}


@router.get("/model/{name:path}")
async def one_model(request: Request, name: str) -> dict[str, Any]:
    """One model by its id or an alias."""
    if name not in MODELS:
        raise HTTPException(404, f"no model {name!r}; there is {MODEL}")
    return {"object": "model", "data": described(request)}


@router.get("/healthz")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(request: Request) -> dict[str, Any]:
    """The model is loaded and warm, and requests are taken; else a 503 with the reason."""
    queue: AdmissionQueue = request.app.state.service.worker.queue
    if queue.refusal is not None:
        raise HTTPException(503, queue.refusal, {"retry-after": "1"})
    return {"status": "ready", "waiting": len(queue)}
