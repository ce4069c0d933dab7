# SPDX-License-Identifier: Apache-2.0
"""The page's server: this machine only, reading only, nothing from elsewhere.

It listens on 127.0.0.1, answers requests addressed to this machine alone (so that a foreign page cannot reach it by a
name of its own), and tells the browser to load nothing from anywhere else.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from spectralgpt.app.explorer import Explorer
from spectralgpt.errors import UserError
from spectralgpt.viz.figures import png_bytes

try:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise UserError("app: expected starlette and uvicorn, found none; pip install 'spectralgpt[app]'") from error

if TYPE_CHECKING:
    from starlette.requests import Request

HOST = "127.0.0.1"
_FILES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/app.css": ("app.css", "text/css"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def build_app(explorer: Explorer) -> Starlette:
    """The application, an ASGI callable."""

    def listing(query: Mapping[str, str]) -> Response:
        return JSONResponse(explorer.listing())

    def scene(query: Mapping[str, str]) -> Response:
        return JSONResponse(explorer.describe(query["scene"], query["model"]))

    def quicklook(query: Mapping[str, str]) -> Response:
        bands = query["bands"].split(",")
        if len(bands) != 3:
            raise UserError(f"bands: expected three names, got {query['bands']!r}")
        pixels, step = explorer.quicklook(query["scene"], query["model"], bands)
        return Response(png_bytes(pixels), media_type="image/png", headers={"X-Step": str(step)})

    def window(query: Mapping[str, str]) -> Response:
        row, column, seed = (int(query[key]) for key in ("row", "column", "seed"))
        found = explorer.window(query["scene"], query["model"], row, column, float(query["ratio"]), seed)
        told = {"row": found.row, "column": found.column, "shape": found.truth.shape}
        told["psnr"] = None if np.isnan(found.psnr) else found.psnr
        arrays = [found.truth, found.rebuilt, found.hidden, found.embedding]
        return Response(_packed(told, arrays), media_type="application/octet-stream")

    routes = [Route(path, _answer(_file(*file))) for path, file in _FILES.items()]
    for path, function in (("list", listing), ("scene", scene), ("quicklook", quicklook), ("window", window)):
        routes.append(Route(f"/api/{path}", _answer(function)))
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])])


def serve(explorer: Explorer, port: int) -> None:
    """Serves the page until Ctrl-C.

    Raises:
        UserError: uvicorn is missing, or the port is taken.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise UserError("app: expected uvicorn, found none; pip install 'spectralgpt[app]'") from error
    print(f"http://{HOST}:{port}   Ctrl-C ends it", flush=True)
    config = uvicorn.Config(build_app(explorer), host=HOST, port=port, log_level="error", access_log=False)
    try:
        uvicorn.Server(config).run()
    except SystemExit as error:  # how uvicorn tells that it could not listen
        raise UserError(f"app: expected a free port, {port} is taken; choose another with --port") from error


def _answer(function: Callable[[Mapping[str, str]], Response]) -> Callable[[Request], Response]:
    """Turns what a user can mend into a line that the page shows."""

    def endpoint(request: Request) -> Response:
        try:
            response = function(request.query_params)
        except UserError as error:
            response = JSONResponse({"error": str(error)}, status_code=400)
        except (KeyError, ValueError) as error:
            response = JSONResponse({"error": f"expected other parameters ({error})"}, status_code=400)
        response.headers.update(_HEADERS)
        return response

    return endpoint


def _file(name: str, media_type: str) -> Callable[[Mapping[str, str]], Response]:
    content = resources.files("spectralgpt.app").joinpath("static", name).read_bytes()
    return lambda query: Response(content, media_type=media_type)


def _packed(told: dict[str, Any], arrays: list[np.ndarray[Any, Any]]) -> bytes:
    """Length of the JSON (four bytes, little endian), the JSON padded to a multiple of 4 bytes, then each array."""
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 4)
    packed = io.BytesIO()
    packed.write(struct.pack("<I", len(text)) + text)
    for array in arrays:
        packed.write(np.ascontiguousarray(array).tobytes())
    return packed.getvalue()
