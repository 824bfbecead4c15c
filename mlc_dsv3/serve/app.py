"""The application: every endpoint behind the guard, with errors in the dialect of each."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from mlc_dsv3 import __version__
from mlc_dsv3.errors import MACHINE_ERRORS, USER_ERRORS
from mlc_dsv3.serve import about, anthropic_messages, openai_chat, openai_completions, openai_responses, page, text
from mlc_dsv3.serve.access import AccessRules, Guard
from mlc_dsv3.serve.errors import ApiError, as_api_error, error_body
from mlc_dsv3.serve.json_response import JsonResponse
from mlc_dsv3.serve.service import Service

_EXPECTED = (ApiError, RequestValidationError, HTTPException, RecursionError, *USER_ERRORS, *MACHINE_ERRORS)


def create_app(service: Service, rules: AccessRules, cors_origins: Sequence[str] = ()) -> FastAPI:
    """The server's application. `cors_origins`: other sites whose pages may use it."""
    # The framework's own pages of documentation load scripts from another host.
    app = FastAPI(title="mlc_dsv3", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    for part in (about, openai_chat, openai_completions, openai_responses, anthropic_messages, text, page):
        app.include_router(part.router)
    for kind in (*_EXPECTED, Exception):
        app.add_exception_handler(kind, _answer_error)
    app.add_middleware(Guard, rules=rules)
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"])
    return app


def _answer_error(request: Request, error: Exception) -> Response:
    answer = as_api_error(error)
    return JsonResponse(error_body(answer, request.url.path), answer.status, answer.headers)
