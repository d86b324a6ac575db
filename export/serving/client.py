"""Classify an image file on the server: `python client.py photo.jpg`."""

import pathlib
import sys

import numpy as np
import tritonclient.http as triton

content = pathlib.Path(sys.argv[1]).read_bytes()
picture = triton.InferInput("image_bytes", [1], "BYTES")
picture.set_data_from_numpy(np.array([content], object))
answer = triton.InferenceServerClient("localhost:8080").infer(
    "resnext", [picture], parameters={"top": 3}
)
labels, scores = map(answer.as_numpy, ("top_labels", "top_scores"))
for label, score in zip(labels[0], scores[0], strict=True):
    print(f"{label.decode():20} {score:.4f}")
