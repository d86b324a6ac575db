"""KServe's model server with limits, for requests that may hold any bytes."""

import asyncio
import contextlib
import copy
import logging
import warnings

import kserve
import kserve.logging
import kserve.model_server
import orjson
import uvloop
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.responses import Response
from kserve.errors import InvalidInput
from kserve.protocol.rest.v2_datamodels import InferenceRequest
from pictures import PictureModel
from pictures import Refused
from starlette.exceptions import HTTPException

_SIZE = "Inference-Header-Content-Length"

log = logging.getLogger("serving")


def serve(network, options):
    """Serve until a signal stops it.

    Args:
        network: A `runtimes.Network`.
        options: Those of the command line.

    Example:

    >>> serve(open_model("model.onnx", threads=2), options)
    """
    configure_logging()
    model = PictureModel(
        options.name,
        network,
        threads=options.threads,
        max_batch=options.max_batch,
        max_waiting=options.max_waiting,
        max_pictures=options.max_pictures,
        max_pixels=options.max_pixels,
    )
    server = PictureServer(options)
    log.info(
        "%s is served on all addresses, at port %d: /v2/models/%s",
        *(options.model, options.http_port, options.name),
    )
    server.start([model])
    log.info("stopped: %d requests, %d answered", model.requests, model.answers)


def configure_logging():
    """Have KServe print warnings, and nothing for each request."""
    settings = copy.deepcopy(kserve.logging.KSERVE_LOG_CONFIG)
    loggers = settings["loggers"]
    for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.error"):
        loggers[name]["level"] = "WARNING"
    loggers["uvicorn.access"]["handlers"] = []
    loggers[log.name] = {"handlers": ["kserve"], "level": "INFO"}
    kserve.logging.configure_logging(settings)
    # FastAPI warns about something that KServe does.
    warnings.filterwarnings("ignore", "ORJSONResponse is deprecated")


class PictureServer(kserve.ModelServer):
    """KServe's server with limits, and requests that may hold any bytes.

    Args:
        options: Those of the command line.
    """

    def __init__(self, options):
        super().__init__(
            http_port=options.http_port,
            grpc_port=options.grpc_port,
            registered_models=_Models(),
            enable_latency_logging=False,
            grace_period=options.grace_seconds,
        )
        most = 1_000_000 * options.max_megabytes
        # Where KServe looks for it.
        kserve.model_server.args.grpc_max_receive_message_length = most
        app = kserve.model_server.app
        # Before KServe's own route, which turns binary data into lists of
        # numbers and bytes into text; image files are not text.
        app.add_route("/v2/models/{name}/infer", self._infer, methods=["POST"])
        app.add_middleware(_SizeLimit, most=most)
        app.add_exception_handler(Refused, _on_refused)
        app.add_exception_handler(HTTPException, _on_http_exception)
        app.add_exception_handler(RequestValidationError, _on_invalid)
        # KServe has it, and would start Python's own.
        uvloop.install()
        asyncio.set_event_loop(asyncio.new_event_loop())

    async def _infer(self, request):
        """Answer a REST request."""
        name, size = request.path_params["name"], request.headers.get(_SIZE)
        asked = read_request(name, await request.body(), size)
        response, _ = await self.dataplane.infer(name, asked, request.headers)
        outputs = asked.request_outputs or ()
        if asked.use_binary_outputs or any(x.binary_data for x in outputs):
            content, size = response.to_rest()
            return Response(content, headers={_SIZE: str(size)})
        # As KServe's own, which converts number by number.
        return Response(_in_json(response), media_type="application/json")

    def stop(self, sig):
        """Stop once all that is under way is answered.

        Args:
            sig: The signal.
        """
        # KServe's own also unloads the models, under requests that run.
        with contextlib.suppress(InvalidInput):
            super().stop(sig)


class _Models(kserve.ModelRepository):
    """Models that stay: anyone may ask to unload them."""

    def unload(self, name):
        raise InvalidInput("The models of this server stay loaded.")


def read_request(name, body, size=None):
    """A request of REST.

    Args:
        name: That of the model.
        body: JSON, and behind it the binary data of its inputs.
        size: Bytes of the JSON, as text. Defaults to `None`, all.

    Returns:
        A `kserve.InferRequest`.

    Raises:
        Refused: if it is not as the protocol says.

    Example:

    >>> read_request("resnext", await request.body()).inputs[0].shape
    [1]
    """
    try:
        position = len(body) if size is None else int(size)
        fields = orjson.loads(body[:position])
        for tensor in fields["inputs"]:
            tensor.setdefault("data", [])
        fields = InferenceRequest.model_validate(fields)
        request = kserve.InferRequest.from_inference_request(fields, name)
        parts = []
        for tensor in request.inputs:
            size = tensor.parameters.get("binary_data_size")
            parts.append(None if size is None else body[position:][:size])
            position += size or 0
        if position != len(body):
            raise ValueError(f"it has {len(body)} bytes, not {position}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Refused(
            "The body must be JSON as in the Open Inference Protocol, or, with "
            "the header Inference-Header-Content-Length, JSON and binary data; "
            f"{type(error).__name__}: {' '.join(str(error).split())}."
        ) from error
    return kserve.InferRequest(
        name,
        request.inputs,
        request.id,
        parts,
        parameters=request.parameters,
        request_outputs=request.request_outputs,
    )


def _in_json(response):
    outputs = [
        {
            "name": output.name,
            "datatype": output.datatype,
            "shape": output.shape,
            "data": output.data.ravel().tolist(),
        }
        for output in response.outputs
    ]
    return orjson.dumps(
        {
            "id": response.id,
            "model_name": response.model_name,
            "outputs": outputs,
        }
    )


class _SizeLimit:
    """Refuses large bodies, before they are read if they say their size."""

    def __init__(self, app, most):
        self._app, self._most = app, most

    async def __call__(self, scope, receive, send):
        size = 0

        async def receive_some():
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            self._check(size)
            return message

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            self._check(int(said))
        except HTTPException as error:
            response = await _on_http_exception(None, error)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive_some, send)

    def _check(self, size):
        if size > self._most:
            raise HTTPException(
                413, f"A request must have at most {self._most:,} bytes."
            )


async def _on_refused(request, error):
    return _error(error.details, error.status)


async def _on_http_exception(request, error):
    return _error(error.detail, error.status_code)


async def _on_invalid(request, error):
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return _error(f"The request is not as it must be; {place}: {first['msg']}")


def _error(message, status=400):
    """An error as the protocol has them."""
    return JSONResponse({"error": message}, status)
