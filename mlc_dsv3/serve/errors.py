"""What a request can fail with, as HTTP statuses and as the error objects of both dialects.

`as_api_error` makes an `ApiError` of any exception; `error_body` writes it as the endpoint's dialect does.
"""

from __future__ import annotations

import dataclasses
import logging
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from mlc_dsv3.errors import (
    MACHINE_ERRORS,
    USER_ERRORS,
    ContextWindowError,
    ModelFileError,
    NotFiniteError,
    one_line,
)
from mlc_dsv3.runtime.sampling import SamplingParams

_log = logging.getLogger("uvicorn.error")
_MOST_SHOWN = 400  # characters of a message that repeats what a client sent

# Types that a field or a body may have one of, as the framework names them in an error's place.
_UNIONS_MEMBERS = ("str", "int", "float", "bool", "Conversation", "PlainText")
_SETTINGS = {field.name for field in dataclasses.fields(SamplingParams)}
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "server_error",
    503: "server_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    501: "api_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An answer that is an error. `param` names the field of the request that is wrong, `code` the kind of mistake.

    `retry_after`: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


def as_api_error(error: BaseException) -> ApiError:
    """The answer to a request that failed with `error`."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, RecursionError):
        return ApiError(400, "the request is nested too deeply")
    if isinstance(error, NotFiniteError):  # a user error on the command line, where the user has chosen the model
        return ApiError(500, one_line(error))
    if isinstance(error, ContextWindowError):
        return ApiError(400, one_line(error), code="context_length_exceeded")
    if isinstance(error, ModelFileError):
        return ApiError(400, one_line(error.without_origin)[:_MOST_SHOWN])
    if isinstance(error, USER_ERRORS):
        return ApiError(400, one_line(error)[:_MOST_SHOWN], param=_named(str(error)))
    if isinstance(error, MACHINE_ERRORS):
        return ApiError(503, one_line(error) or "out of memory")
    return ApiError(500, f"the server failed ({type(error).__name__}); its log says more")


def reported(error: Exception) -> ApiError:
    """`as_api_error`, with a traceback in the log where the error is a bug of ours."""
    answer = as_api_error(error)
    if answer.status == 500 and not isinstance(error, (ApiError, NotFiniteError)):
        _log.error("a request failed", exc_info=error)
    return answer


def error_body(error: ApiError, path: str) -> dict[str, Any]:
    """The error object in the dialect of the endpoint at `path`."""
    if is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def is_anthropic(path: str) -> bool:
    """Whether the endpoint at `path` speaks Anthropic's dialect."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def _invalid(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body: one sentence that a client can show."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if part != "body" and not _is_a_unions_member(part)]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be parsed")
        return ApiError(400, f"the body is not valid JSON: {one_line(reason)[:_MOST_SHOWN]}")
    if not place and first["type"] == "value_error":
        return ApiError(400, one_line(first["ctx"]["error"]))
    if not place:
        return ApiError(400, "the body must be a JSON object, sent with Content-Type: application/json")
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    name = one_line(name)[:_MOST_SHOWN]
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{name} is not a field that this server knows", code="unknown_parameter", param=name)
    if first["type"] == "missing":
        return ApiError(400, f"{name} is required", code="missing_required_parameter", param=name)
    return ApiError(400, f"{name}: {one_line(first['msg'])[:_MOST_SHOWN]}", param=name)


def _is_a_unions_member(part: int | str) -> bool:
    """Whether a place's part names one of several types that a field may have, and no field."""
    return isinstance(part, str) and (part in _UNIONS_MEMBERS or "[" in part)


def _named(text: str) -> str | None:
    """The field that an error's text is about, where it begins with a setting's name."""
    name = text.partition(" ")[0]
    return name if name in _SETTINGS else None


def _of_http(error: HTTPException) -> ApiError:
    """The framework's own refusals: unknown paths, wrong methods, bodies that cannot be parsed."""
    if error.status_code == 404:
        return ApiError(404, "there is no such endpoint; /openapi.json lists them", code="unknown_url")
    if error.status_code == 400:  # all that the framework itself says so of
        return ApiError(400, "the body cannot be read; it must be JSON in UTF-8 that does not nest too deeply")
    answer = ApiError(error.status_code, str(error.detail or HTTPStatus(error.status_code).phrase))
    answer.headers = dict(error.headers or {})
    return answer
