"""What operators and their machines ask: alive, ready, how much."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zturbo.api.routes import Router
from zturbo.metrics import CONTENT_TYPE
from zturbo.service import Service

router = Router()


@router.route("/healthz", "GET")
async def health(_request: Request) -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.route("/readyz", "GET")
async def ready(request: Request) -> Response:
    """The model is loaded and warm, and requests are taken; else a 503 with the reason."""
    service: Service = request.app.state.service
    service.worker.queue.check_ready()
    if service.signer is not None:
        service.signer.check()
    return JSONResponse({"status": "ready", "waiting": len(service.worker.queue)})


@router.route("/metrics", "GET")
async def metrics(request: Request) -> Response:
    """The server's counters, for Prometheus."""
    service: Service = request.app.state.service
    service.metrics.waiting.set(len(service.worker.queue))
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)
