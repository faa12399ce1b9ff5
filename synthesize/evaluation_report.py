"""The scores of an evaluation, what they were computed from, and their JSON form."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpmepf.shared.output_file import replacing
from dpmepf.synthesize.distances import Distances


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of real images classified rightly, for each seed."""

    seeds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.seeds)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.seeds) if len(self.seeds) > 1 else None


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The scores and what they were computed from. `distances` and `extractor` are None when not asked for.

    `images` counts `synthetic` and `real` images, those of each in the distances, and those `skipped` as unreadable.
    """

    accuracy: dict[str, Accuracy]
    distances: Distances | None
    extractor: str | None
    images: dict[str, int]
    classes: tuple[str, ...]
    resolution: int
    channels: int
    device: str
    protocol: str
    note: str

    def to_dict(self) -> dict[str, Any]:
        """The object that `dpmepf-eval --json` prints."""
        measured = self.distances
        return {
            "accuracy": {
                name: {"mean": score.mean, "std": score.std, "seeds": list(score.seeds)}
                for name, score in self.accuracy.items()
            },
            "fid": measured and measured.fid,
            "kid": measured and {"mean": measured.kid_mean, "std": measured.kid_std},
            "extractor": self.extractor,
            "precision": measured and measured.precision,
            "recall": measured and measured.recall,
            "images": self.images,
            "classes": list(self.classes),
            "resolution": self.resolution,
            "channels": self.channels,
            "device": self.device,
            "protocol": self.protocol,
            "note": self.note,
        }


def write_report(path: Path, report: EvaluationReport) -> None:
    """Write the report as JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
