"""Problem details (RFC 9457): one JSON shape for every refusal, and a page for each code."""

import html
import json
from typing import Any

from starlette.responses import HTMLResponse, Response

from ptsa_serve.errors import REQUEST_ERRORS, Internal, NotFound, RequestError

__all__ = ["MEDIA_TYPE", "problem", "problem_page", "problem_response"]

MEDIA_TYPE = "application/problem+json"

# What each code's page says: why it happens, and what helps. The codes are those of `errors.REQUEST_ERRORS`.
_EXPLANATIONS: dict[str, str] = {
    "bad-image": "The bytes are not an image that can be decoded whole: another kind of file, cut off, or damaged. "
    "Open the file in a viewer and save it again. A partly decoded photo is never answered with maps.",
    "missing-image": "The request holds no photo. Send the bytes as the body with Content-Type: image/jpeg, or as the "
    "one file part named image of a multipart form. Addresses of photos are not fetched.",
    "bad-multipart": "The multipart body does not parse, ends early, or holds more than one photo. Let the HTTP "
    "library build the body and the Content-Type header, and send one photo a request.",
    "unauthorized": "This server wants an API key: Authorization: Bearer KEY, or X-API-Key: KEY.",
    "unknown-task": "The model has no such task. /v1/models lists those that it has.",
    "unknown-model": "No such model is loaded. /v1/models lists those that are.",
    "not-found": "There is nothing under this path. Photos go to POST /v1/predict.",
    "method-not-allowed": "The path exists, not with this method. The Allow header names the methods that it takes.",
    "not-acceptable": "The Accept header names no type that this path can answer with. The problem lists the types.",
    "too-large": "The body has more bytes, or the photo more pixels, than the limits that /v1/models shows. Send a "
    "smaller photo: the model works on a small grid anyway.",
    "unsupported-media-type": "The Content-Type can hold no photo, or the image format is not one that is read: JPEG, "
    "PNG, WebP, BMP, TIFF, GIF, and AVIF where the server can.",
    "bad-parameter": "A query parameter or header is unknown, or its value is not allowed, or a side of the photo is "
    "too short or too long. The problem names the parameter and the values that are allowed.",
    "too-many-requests": "This client has used up its quota of photos a minute. Retry-After says when to come back.",
    "overloaded": "As many photos wait as may wait; this one was refused before any work. Come back after Retry-After.",
    "not-ready": "The model is still being loaded and checked, or failed its check. Come back after Retry-After; if "
    "that does not help, the server's log says why.",
    "shutting-down": "The server finishes what it holds and takes nothing new. Send the photo again after Retry-After; "
    "behind a load balancer another server answers.",
    "deadline-exceeded": "The X-Deadline-Ms of the request, or the server's own limit, passed before the answer was "
    "there, or cannot be met with the photos that wait. Allow more time or send fewer photos at once.",
    "internal": "A defect of the server. It is in its log under the request id; other requests are not affected.",
}

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><link rel="stylesheet" href="../ui/style.css"><main class="text">
<p class="status">{status} <code>{code}</code></p><h1>{title}</h1><p>{text}</p>
<p>Every problem of this service: {links}</p></main></html>"""


def problem(error: RequestError, request_id: str) -> dict[str, Any]:
    """The members of the problem details of `error`."""
    members: dict[str, Any] = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
    }
    if error.parameter is not None:
        members["parameter"] = error.parameter
    if error.allowed is not None:
        members["allowed"] = list(error.allowed)
    return members


def problem_response(error: Exception, request_id: str) -> Response:
    """The answer to a request that failed with `error`; anything but a RequestError is shown as `internal`."""
    shown = error if isinstance(error, RequestError) else Internal()
    return Response(
        json.dumps(problem(shown, request_id), ensure_ascii=False),
        status_code=shown.status,
        headers=shown.headers,
        media_type=MEDIA_TYPE,
    )


def problem_page(code: str) -> Response:
    """The page that explains `code`; raises NotFound for a code that does not exist."""
    if code not in REQUEST_ERRORS:
        raise NotFound(f"there is no problem {code[:64]!r}; the codes are {', '.join(REQUEST_ERRORS)}")
    error = REQUEST_ERRORS[code]
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in REQUEST_ERRORS)
    page = _PAGE.format(
        title=html.escape(error.title),
        status=error.status,
        code=code,
        text=html.escape(_EXPLANATIONS[code]),
        links=links,
    )
    return HTMLResponse(page)
