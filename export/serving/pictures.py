"""Requests with pictures in them, and their answers."""

import asyncio
import base64
import concurrent.futures
import http
import struct
import time
import uuid

import grpc
import kserve
import numpy as np
from batching import Batcher
from grpc_interceptor.exceptions import GrpcException
from kserve.protocol.infer_type import to_http_parameters
from prometheus_client import Counter
from prometheus_client import Gauge
from prometheus_client import Histogram

# What a request may have, one of them, and of which types.
INPUTS = {"image_bytes": ("BYTES",), "image": ("UINT8", "FP32")}
# What answers have; all but the last unless others are asked for.
OUTPUTS = {
    "top_labels": "BYTES",
    "top_scores": "FP32",
    "top_indices": "INT32",
    "valid": "BOOL",
    "errors": "BYTES",
    "probabilities": "FP32",
}
_GRPC_STATUS = {
    http.HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    http.HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}


class Refused(GrpcException):
    """A request that is not answered, with the reason.

    Args:
        reason: What is wrong.
        status: Of HTTP. Defaults to 400.
    """

    def __init__(self, reason, status=http.HTTPStatus.BAD_REQUEST):
        super().__init__(status_code=_GRPC_STATUS[status], details=reason)
        self.status = status


class PictureModel(kserve.Model):
    """A network behind KServe's protocols.

    Args:
        name: Its name in URLs.
        network: A `runtimes.Network`.
        max_batch: Most pictures that run together.
        max_waiting: Most pictures under way.
        max_pictures: Most pictures of a request.
        max_pixels: Most pixels of an image file.

    Example:

    >>> kserve.ModelServer().start([PictureModel("resnext", network, **limits)])
    """

    def __init__(
        self,
        name,
        network,
        *,
        threads,
        max_batch,
        max_waiting,
        max_pictures,
        max_pixels,
    ):
        super().__init__(name)
        self.requests = 0
        self.answers = 0  # refusals too
        self._network = network
        self._labels = np.array(network.labels, object)
        self._max_waiting, self._max_pictures = max_waiting, max_pictures
        self._max_pixels = max_pixels
        self._batcher = Batcher(self._run, max_batch)
        self._readers = concurrent.futures.ThreadPoolExecutor(threads, "reader")
        self._waiting = Gauge("pictures_waiting", "Pictures under way")
        self._outcomes = Counter("pictures", "Pictures so far", ["outcome"])
        self._refusals = Counter("refused_requests", "By status", ["status"])
        self._batches = Histogram(
            "batch_pictures",
            "Pictures of a batch",
            buckets=range(1, max_batch + 1),
        )
        self._seconds = Counter("batch_seconds", "In the network")
        self._under_way = 0
        network.run(np.zeros((1, *network.shape), "uint8"))  # allocates
        self.load()

    def get_input_types(self):
        """The inputs, of which a request has one.

        Returns:
            A list of dicts, as the protocol has them.
        """
        shapes = {"image_bytes": [-1], "image": [-1, *self._network.shape]}
        return [
            {"name": name, "datatype": kinds[0], "shape": shapes[name]}
            for name, kinds in INPUTS.items()
        ]

    def get_output_types(self):
        """The outputs.

        Returns:
            A list of dicts, as the protocol has them.
        """
        shapes = {"valid": [-1], "errors": [-1]}
        shapes["probabilities"] = [-1, len(self._labels)]
        return [
            {
                "name": name,
                "datatype": kind,
                "shape": shapes.get(name, [-1, -1]),
            }
            for name, kind in OUTPUTS.items()
        ]

    async def predict(self, payload, headers=None, response_headers=None):
        """Answer a request.

        Args:
            payload: A `kserve.InferRequest`.
            headers: Not used.
            response_headers: Not used.

        Returns:
            A `kserve.InferResponse`.

        Raises:
            Refused: if the request is not as described, none of its pictures
                can be read, or too many are under way.
        """
        self.requests += 1
        try:
            response = await self._answer(payload)
        except Refused as error:
            self._refusals.labels(str(int(error.status))).inc()
            self.answers += 1
            raise
        self.answers += 1
        return response

    async def _answer(self, request):
        tensor, top, names = self._parse(request)
        count = tensor.shape[0]
        if self._under_way + count > self._max_waiting:
            raise Refused(
                f"{self._under_way} pictures are under way and {count} more "
                f"would be over {self._max_waiting}; try again later.",
                http.HTTPStatus.SERVICE_UNAVAILABLE,
            )
        self._count_waiting(count)
        try:
            pictures = await asyncio.get_running_loop().run_in_executor(
                self._readers, self._read, tensor
            )
            outputs = await self._classify(pictures, top)
        finally:
            self._count_waiting(-count)
        return kserve.InferResponse(
            request.id or str(uuid.uuid4()),
            self.name,
            [_output(name, outputs[name], request.from_grpc) for name in names],
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def _count_waiting(self, count):
        self._under_way += count
        self._waiting.set(self._under_way)

    def _parse(self, request):
        """The pictures, the number of best classes and the outputs' names."""
        if not isinstance(request, kserve.InferRequest):
            raise Refused(
                "The Open Inference Protocol is spoken; post to "
                f"/v2/models/{self.name}/infer."
            )
        if len(request.inputs) != 1 or request.inputs[0].name not in INPUTS:
            names = ", ".join(tensor.name for tensor in request.inputs)
            raise Refused(
                f"`inputs` must be `image_bytes` or `image`; got {names}."
            )
        (tensor,) = request.inputs
        if tensor.datatype not in INPUTS[tensor.name]:
            raise Refused(
                f"`{tensor.name}` must be {' or '.join(INPUTS[tensor.name])}; "
                f"got {tensor.datatype}."
            )
        self._check_shape(tensor)
        top = to_http_parameters(request.parameters or {}).get("top", 5)
        if type(top) is not int or top < 1:
            raise Refused(f"`top` must be a positive integer; got {top!r}.")
        wanted = [output.name for output in request.request_outputs or ()]
        for name in wanted:
            if name not in OUTPUTS:
                raise Refused(
                    f"`outputs` must be of {', '.join(OUTPUTS)}; got {name}."
                )
        return tensor, top, wanted or list(OUTPUTS)[:-1]

    def _check_shape(self, tensor):
        rest = () if tensor.name == "image_bytes" else self._network.shape
        if tuple(tensor.shape[1:]) != rest or not tensor.shape:
            shape = ", ".join(map(str, ("pictures", *rest)))
            raise Refused(
                f"`{tensor.name}` must have shape [{shape}]; "
                f"got {list(tensor.shape)}."
            )
        if not 1 <= tensor.shape[0] <= self._max_pictures:
            raise Refused(
                f"`{tensor.name}` must have from 1 to {self._max_pictures} "
                f"pictures; got {tensor.shape[0]}."
            )

    def _read(self, tensor):
        """Pictures of the network's size; for bad files, the reason."""
        try:
            if tensor.name == "image" and tensor.data:  # numbers of JSON
                # Not as bytes, which would cut fractions off.
                values = np.array(tensor.data, "float32").reshape(tensor.shape)
            else:
                values = tensor.as_numpy()
        except (ValueError, TypeError, struct.error) as error:
            raise Refused(
                f"`{tensor.name}` must have {tensor.datatype} data of shape "
                f"{list(tensor.shape)}: {error}."
            ) from error
        if tensor.name == "image_bytes":
            return [self._read_file(value) for value in values]
        # Written so that NaN is refused too.
        if not (values.min() >= 0 and values.max() <= 255):
            raise Refused("`image` must be pixels from 0 to 255.")
        return list(values)

    def _read_file(self, file):
        if self._network.transform is None:
            raise Refused(
                "`inputs` must be `image`; the model's file does not say how "
                "image files become its input."
            )
        try:
            if isinstance(file, str):  # JSON has no bytes
                file = base64.b64decode(file, validate=True)
        except ValueError:
            return "in JSON, image files must be base64."
        if not isinstance(file, bytes):
            raise Refused(
                f"`image_bytes` must have strings; got {type(file).__name__}."
            )
        try:
            return self._network.transform.pixels(
                file, max_pixels=self._max_pixels
            )
        except ValueError as error:
            return str(error).rpartition("; the image: ")[2]

    async def _classify(self, pictures, top):
        """The outputs by name; blank for what is no picture."""
        errors = [x if isinstance(x, str) else "" for x in pictures]
        valid = np.array([not error for error in errors])
        self._outcomes.labels("invalid").inc(int((~valid).sum()))
        if not valid.any():
            raise Refused(f"No picture can be read; the first: {errors[0]}")
        good = [x for x in pictures if not isinstance(x, str)]
        answers = await asyncio.gather(*map(self._batcher.submit, good))
        self._outcomes.labels("answered").inc(len(good))
        scores = np.zeros((len(pictures), len(self._labels)), "float32")
        scores[valid] = answers
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        each = valid[:, None]
        return {
            "top_labels": np.where(each, self._labels[best], ""),
            "top_scores": np.take_along_axis(scores, best, 1),
            "top_indices": np.where(each, best, -1).astype("int32"),
            "valid": valid,
            "errors": np.array(errors, object),
            "probabilities": scores,
        }

    def _run(self, pixels):
        """The network, with what is measured."""
        self._batches.observe(len(pixels))
        started = time.perf_counter()
        scores = self._network.run(pixels)
        self._seconds.inc(time.perf_counter() - started)
        return scores


def _output(name, values, for_grpc):
    """An output as KServe has them."""
    shape, datatype = list(values.shape), OUTPUTS[name]
    output = kserve.InferOutput(name, shape, datatype, values)
    if for_grpc:  # KServe's conversion would ask whether the array is true
        output.set_data_from_numpy(values)
    return output
