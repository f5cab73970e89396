"""What operators and their machines ask: alive, ready, how much."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from zturbo.errors import Busy
from zturbo.metrics import CONTENT_TYPE
from zturbo.service import Service

READY_RETRY_S = 1

router = APIRouter()


@router.get("/healthz")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(request: Request) -> dict[str, Any]:
    """The model is loaded and warm, and requests are taken; else a 503 with the reason."""
    service: Service = request.app.state.service
    if service.worker.queue.refusal is not None:
        raise Busy(service.worker.queue.refusal, READY_RETRY_S)
    return {"status": "ready", "waiting": len(service.worker.queue)}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The server's counters, for Prometheus."""
    service: Service = request.app.state.service
    service.metrics.waiting.set(len(service.worker.queue))
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)
