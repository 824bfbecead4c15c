"""`/v1/models`, `/health`, `/metrics` and `/experts`: what is served, whether it works, and how busy it is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from mlc_dsv3.serve.errors import ApiError
from mlc_dsv3.serve.json_response import JsonResponse
from mlc_dsv3.serve.service import CurrentService, ServedModel

router = APIRouter()


@router.get("/health")
async def health(service: CurrentService) -> Response:
    """Whether requests can be served; 503 with the device's words where it is lost."""
    if service.llm.failure is not None:
        raise service.llm.failure
    return JsonResponse({"status": "ok"})


@router.get("/v1/models")
async def models(service: CurrentService) -> Response:
    """The model under each of its names, for clients of either dialect."""
    entries = [_described(service.model, name) for name in service.model.names]
    names = service.model.names
    return JsonResponse(
        {"object": "list", "data": entries, "first_id": names[0], "last_id": names[-1], "has_more": False}
    )


@router.get("/v1/models/{name:path}")
async def model(name: str, service: CurrentService) -> Response:
    """One of them."""
    service.check_model(name)
    return JsonResponse(_described(service.model, name))


@router.get("/metrics")
async def metrics(service: CurrentService) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    await service.expert_shares.read()
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/experts")
async def experts(service: CurrentService) -> Response:
    """The load of the routed experts by the latest text: each expert's share of the choices in each layer."""
    shares = await service.expert_shares.read()
    if shares is None:
        raise ApiError(404, "the model has no routed experts", code="no_experts")
    return JsonResponse(shares)


def _described(model: ServedModel, name: str) -> dict[str, Any]:
    created = datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z")
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "mlc_dsv3",
        "max_model_len": model.context_window,
        "thinking_variables": list(model.thinking_variables),
        "type": "model",
        "display_name": name,
        "created_at": created,
    }
