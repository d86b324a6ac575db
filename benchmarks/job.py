"""What one process is asked to time."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Job:
    """One subject doing one task.

    Attributes:
        subject: A key of `benchmarks.subjects.SUBJECTS`.
        task: `"inference"` or `"training"`, a step of SGD with momentum 0.9,
            weight decay 1e-4 and label smoothing 0.1.
        dtype: `"float32"`, or `"bfloat16"` for the library's mixed precision.
        batch: Images at a time.
        size: Height and width, in pixels.
        depth: Layers: 26, 50, 101 or 152.
        cardinality: Groups.
        base_width: Channels of a group in the first stage.
        threads: Threads within an operation.
        folder: Where `benchmarks.prepare` put weights, images and exports.
            Empty for random weights and images.
    """

    subject: str
    task: str = "inference"
    dtype: str = "float32"
    batch: int = 1
    size: int = 224
    depth: int = 50
    cardinality: int = 32
    base_width: int = 4
    threads: int = 2
    folder: str = ""

    @property
    def stages(self):
        """Blocks in each stage (paper, table 1)."""
        return {
            26: (2, 2, 2, 2),
            50: (3, 4, 6, 3),
            101: (3, 4, 23, 3),
            152: (3, 8, 36, 3),
        }[self.depth]

    def to_json(self):
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text):
        return cls(**json.loads(text))
