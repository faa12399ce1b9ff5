"""The audit of an artifact: every claim recomputed, and the release seen by several accountants."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dpmepf.artifacts import accounting
from dpmepf.artifacts.accountants import EXACT, Estimate, estimate_epsilons
from dpmepf.artifacts.claims import Check, check_claims, deciding_release, implied_sensitivity, recomputed_delta
from dpmepf.artifacts.hdf5_file import read_artifact
from dpmepf.artifacts.ledger import Ledger
from dpmepf.artifacts.merged_ledger import MergedLedger, sum_sigma
from dpmepf.artifacts.signature import verify_file
from dpmepf.shared.errors import DpmepfError
from dpmepf.shared.feature_map_description import FeatureMapDescription

_CURVE_POINTS = 40
_CURVE_REACH = 4.0  # the curve ends at this multiple of the claimed epsilon


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an artifact released, at which (ε, δ)."""

    ledger: Ledger | MergedLedger
    feature_map: FeatureMapDescription
    classes: tuple[str, ...]
    dimension: int
    """D, the number of features in the file."""
    checks: tuple[Check, ...]
    delta: float
    """The δ at which epsilon is reported: the ledger's, unless another was asked for."""
    estimates: tuple[Estimate, ...]
    curve: tuple[tuple[float, float], ...]
    """(ε, δ(ε)) under the ledger's relation, δ rounded up; empty when it cannot be computed."""
    signed_by: str | None = None
    """Fingerprint of the key whose signature was checked and is right; None: no key was given."""

    @property
    def valid(self) -> bool:
        """Whether every claim of the ledger holds."""
        return all(check.holds for check in self.checks)

    @property
    def epsilon(self) -> float | None:
        """ε at `delta` under the ledger's relation, recomputed and rounded up."""
        exact = (EXACT, self.ledger.relation)
        return next(e.epsilon for e in self.estimates if (e.accountant, e.relation) == exact)

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity implied by the mechanism under the ledger's relation, in lattice units, rounded up."""
        return implied_sensitivity(deciding_release(self.ledger), self.ledger.relation)

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise on every coordinate before coarsening, in lattice units.

        Of a merged artifact that of the sum, which is not what ε follows from: each release has its own.
        """
        return sum_sigma(self.ledger.releases)

    @property
    def assumption(self) -> str | None:
        """What a merged artifact's claim rests on that nobody can check; None for a single release."""
        return self.ledger.assumption if isinstance(self.ledger, MergedLedger) else None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it; sigma and sensitivity are in lattice units."""
        ledger = self.ledger
        return {
            "valid": self.valid,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "relation": ledger.relation.value,
            "sigma": self.sigma,
            "sensitivity": self.sensitivity,
            "dimension": self.dimension,
            "classes": list(self.classes),
            "encoder": self.feature_map.encoder,
            "encoder_sha256": self.feature_map.weights_sha256,
            "features": self.feature_map.preset,
            "resolution": self.feature_map.resolution,
            "channels": self.feature_map.channels,
            "unit_of_privacy": ledger.unit_of_privacy,
            "inferred_schema": list(ledger.inferred_schema),
            "dataset_name": ledger.dataset_name,
            "release_id": None if isinstance(ledger, MergedLedger) else ledger.release_id,
            "releases": [
                {
                    "release_id": release.release_id,
                    "dataset_name": release.dataset_name,
                    "claimed_epsilon": release.epsilon,
                    "claimed_delta": release.delta,
                    "sigma": release.sigma,
                    "inferred_schema": list(release.inferred_schema),
                }
                for release in ledger.releases
            ],
            "assumption": self.assumption,
            "signed_by": self.signed_by,
            "claimed_epsilon": ledger.epsilon,
            "claimed_delta": ledger.delta,
            "checks": [asdict(check) for check in self.checks],
            "accountants": [asdict(estimate) | {"relation": estimate.relation.value} for estimate in self.estimates],
            "feature_map": asdict(self.feature_map),
            "curve": [{"epsilon": epsilon, "delta": delta} for epsilon, delta in self.curve],
            "ledger": ledger.to_dict(),
        }


def audit_artifact(
    path: Path, *, delta: float | None = None, verify_key: Ed25519PublicKey | None = None
) -> AuditReport:
    """Read the artifact at `path` and recompute what it claims.

    Args:
        path: an artifact.
        delta: the δ at which to report ε, in (0, 1); the ledger's by default. The claims are judged at the ledger's.
        verify_key: whose signature the artifact has to bear; None: the signature is not looked at.

    Raises:
        SignatureError: the artifact does not bear it.
        ArtifactMissingError, ArtifactError: there is no artifact, or it cannot be read.
        PrivacyParameterError: `delta` is outside (0, 1).
    """
    artifact = read_artifact(path)
    signed_by = None if verify_key is None else verify_file(path, verify_key)
    ledger, feature_map, classes = artifact.ledger, artifact.feature_map, artifact.classes
    dimension, coordinates = artifact.dimension, artifact.coordinates
    checks = check_claims(artifact)
    del artifact  # up to 256 MiB, before Opacus takes 600
    delta = ledger.delta if delta is None else delta
    if not 0 < delta < 1:
        raise accounting.PrivacyParameterError(f"delta is {delta}; it must lie strictly between 0 and 1")
    return AuditReport(
        ledger=ledger,
        feature_map=feature_map,
        classes=classes,
        dimension=dimension,
        checks=checks,
        delta=delta,
        estimates=estimate_epsilons(ledger, delta, coordinates=coordinates),
        curve=_privacy_curve(ledger, coordinates),
        signed_by=signed_by,
    )


def _privacy_curve(ledger: Ledger | MergedLedger, coordinates: int) -> tuple[tuple[float, float], ...]:
    epsilons = [ledger.epsilon * _CURVE_REACH * point / _CURVE_POINTS for point in range(_CURVE_POINTS + 1)]
    try:
        return tuple(
            (epsilon, recomputed_delta(ledger, epsilon, ledger.relation, coordinates=coordinates))
            for epsilon in epsilons
        )
    except DpmepfError:  # parameters outside what the accounting takes; the epsilon check says so
        return ()
