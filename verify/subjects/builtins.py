"""Catalogue of the built-in subjects: the three systems that the main job runs, by short name.

Plain data: no torch here, the parent process reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Builtin:
    """A built-in subject.

    Attributes:
        name: Its short name.
        spec: `module:factory`, loaded by the ranks.
        label: What messages call it on `cpu`.
        expectation: What the main job expects of it; a control is expected to be VIOLATED.
        cuda_label: What messages call it on `cuda`, if it is not the same.
    """

    name: str
    spec: str
    label: str
    expectation: Literal["HOLDS", "VIOLATED"] = "HOLDS"
    cuda_label: str = ""

    def label_on(self, device: str) -> str:
        """Return what messages call it on `device`, cpu or cuda."""
        return self.cuda_label or self.label if device == "cuda" else self.label


BUILTINS: dict[str, Builtin] = {
    builtin.name: builtin
    for builtin in (
        Builtin("local", "verify.subjects.local:Local", "local", "VIOLATED"),
        Builtin("aggregated", "verify.subjects.aggregated:Aggregated", "aggregated"),
        Builtin(
            "torch",
            "verify.subjects.torch_syncbn:SyncBatchNorm",
            "torch (CPU stand-in kernels)",
            cuda_label="torch",
        ),
    )
}
