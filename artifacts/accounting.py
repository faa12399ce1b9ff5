"""Trusted core: the exact (epsilon, delta) of Gaussian releases, and of the discrete Gaussians that are released.

The continuous mechanism is judged by the exact condition of Balle and Wang (ICML 2018, Theorem 8); with μ = Δ/σ,

    δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ),

in arithmetic of as many digits as its cancellation needs. The discrete mechanism pays an explicit surcharge for the
lattice. Directions: every reported δ and ε is rounded up, every σ is rounded up. Proofs: PROOF.md, sections 2, 3 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import mpmath

from dpmepf.shared.errors import UsageError

_MP = mpmath.mp.clone()  # our own context: nobody else's mp.dps can weaken the accounting
_MP.dps = 40
_TAIL_NATS = 40  # the lattice surcharge's tail term is e^-40 of δ
_MOST_NEWTON_STEPS = 200
_AWAY = 0.999  # keeps Newton's start on its side of the root whatever the start's own rounding
_LARGEST_EPSILON = 1e6
_NOISE_MULTIPLIERS = (1e-12, 1e20)  # σ/Δ outside these bounds is a mistake, and would cost unbounded digits

Real = Any  # an mpmath number of `_MP`
Lattices = Sequence[tuple[Real, int]]
"""σ in lattice units and number of coordinates of each release."""


class PrivacyParameterError(UsageError):
    """An epsilon, delta, sensitivity or sigma outside its range."""


def gaussian_delta(epsilon: float, *, sensitivity: float, sigma: float) -> float:
    """The smallest δ at which the continuous Gaussian mechanism is (ε, δ)-DP, rounded up.

    Guarantee:
        N(f(x), sigma² I) with ‖f(x) - f(x')‖ <= sensitivity is (epsilon, returned δ)-DP.
    Assumes:
        Exact real arithmetic in the mechanism; see `discrete_gaussian_delta` for what is released.
    Source:
        Balle and Wang 2018, Theorem 8 (an equivalence, so δ is exact up to rounding up).

    Args:
        epsilon: >= 0, in nats.
        sensitivity: L2 sensitivity, > 0.
        sigma: standard deviation of each coordinate's noise, > 0, in the unit of `sensitivity`.

    Returns:
        δ in (0, 1].
    Edge cases:
        A δ below the smallest float is returned as that float.
    Raises:
        PrivacyParameterError: an argument is not finite or outside its range.
    """
    _check_epsilon(epsilon, zero_allowed=True)
    return _float_up(_delta(_MP.mpf(epsilon), _signal_to_noise(sensitivity, sigma)))


def gaussian_epsilon(delta: float, *, sensitivity: float, sigma: float) -> float:
    """The smallest float ε at which the continuous Gaussian mechanism is (ε, δ)-DP.

    Guarantee, Assumes, Source: as `gaussian_delta`, which it inverts; `gaussian_delta(returned ε) <= delta`.

    Args:
        delta: in (0, 1).
        sensitivity: L2 sensitivity, > 0.
        sigma: > 0, in the unit of `sensitivity`.

    Returns:
        ε >= 0, rounded up; 0 when `delta` is at least the total variation distance.
    Raises:
        PrivacyParameterError: an argument is not finite or outside its range.
    """
    _check_delta(delta)
    mu = _signal_to_noise(sensitivity, sigma)
    start = float(_solve_epsilon(_MP.mpf(delta), mu))
    return _smallest_float(lambda epsilon: _delta(_MP.mpf(epsilon), mu) <= delta, start, least=0.0)


def calibrate_sigma(epsilon: float, delta: float, *, sensitivity: float) -> float:
    """The smallest float σ at which the continuous Gaussian mechanism is (ε, δ)-DP.

    Guarantee, Assumes, Source: as `gaussian_delta`, which it inverts; `gaussian_delta(epsilon, σ) <= delta`.

    Args:
        epsilon: > 0, in nats.
        delta: in (0, 1).
        sensitivity: L2 sensitivity, > 0.

    Returns:
        σ in the unit of `sensitivity`, rounded up.
    Raises:
        PrivacyParameterError: an argument is not finite or outside its range.
    """
    _check_epsilon(epsilon)
    _check_delta(delta)
    _check_positive("sensitivity", sensitivity)
    start = float(sensitivity / _solve_signal_to_noise(_MP.mpf(epsilon), _MP.mpf(delta)))
    return _smallest_float(lambda sigma: _delta(_MP.mpf(epsilon), _signal_to_noise(sensitivity, sigma)) <= delta, start)


def discrete_gaussian_delta(epsilon: float, *, sensitivity: float, sigma: float, coordinates: int) -> float:
    """A δ at which the discrete Gaussian mechanism on Z^d is (ε, δ)-DP, rounded up.

    Guarantee:
        f(x) + (N_Z(0, sigma²))^d with integer f and ‖f(x) - f(x')‖ <= sensitivity is (epsilon, returned δ)-DP.
    Assumes:
        Noise drawn exactly and independently from P(n) ∝ exp(-n²/2σ²) on the integers.
    Source:
        PROOF.md, theorem of section 3: with η₁, η₂ of `_lattice_surcharge` and δ₀ the continuous mechanism's,
        δ = e^η₁ δ₀(ε - η₁ - η₂) + e^(ε - η₂ - t) for any t > 0; here t = max(ε, 0) - ln δ₀(ε) + 40.

    Args:
        epsilon: >= 0, in nats.
        sensitivity: L2 sensitivity in lattice units, > 0.
        sigma: parameter of the discrete Gaussian in lattice units, >= 1.
        coordinates: d, the number of noisy integers of the release, >= 1.

    Returns:
        δ in (0, 1], never below `gaussian_delta` of the same arguments.
    Raises:
        PrivacyParameterError: an argument is not finite or outside its range.
    """
    return composed_delta(epsilon, [DiscreteGaussian(sensitivity=sensitivity, sigma=sigma, coordinates=coordinates)])


def discrete_gaussian_epsilon(delta: float, *, sensitivity: float, sigma: float, coordinates: int) -> float:
    """A float ε, rounded up, at which the discrete Gaussian mechanism on Z^d is (ε, δ)-DP.

    Guarantee, Assumes, Source, Args, Raises: as `discrete_gaussian_delta`, which it inverts for `delta` in (0, 1):
    `discrete_gaussian_delta(returned ε) <= delta`.
    """
    return composed_epsilon(delta, [DiscreteGaussian(sensitivity=sensitivity, sigma=sigma, coordinates=coordinates)])


@dataclass(frozen=True, kw_only=True)
class DiscreteGaussian:
    """One discrete Gaussian mechanism: Args and Raises of `discrete_gaussian_delta`."""

    sensitivity: float
    sigma: float
    coordinates: int

    def __post_init__(self) -> None:
        _check_lattice(self.sigma, self.coordinates)
        _signal_to_noise(self.sensitivity, self.sigma)


def composed_delta(epsilon: float, releases: Sequence[DiscreteGaussian]) -> float:
    """A δ at which several discrete Gaussian releases of the same records are together (ε, δ)-DP, rounded up.

    Guarantee:
        All outputs of `releases` together are (epsilon, returned δ)-DP.
    Assumes:
        Every release is as `discrete_gaussian_delta` assumes, with noise of its own, its parameters not chosen by
        looking at the noise of another (PROOF.md, section 6, says how little is lost where they are).
    Source:
        PROOF.md, theorem of section 6: Gaussian mechanisms compose to one with μ² = Σ μᵢ² (Dong, Roth and Su 2022,
        corollary 3.3), and the lattice surcharges add up.

    Args:
        epsilon: >= 0, in nats.
        releases: any number of them, none included.

    Returns:
        δ in (0, 1]; 0 for no release.
    Raises:
        PrivacyParameterError: epsilon is not finite or outside its range.
    """
    _check_epsilon(epsilon, zero_allowed=True)
    if not releases:
        return 0.0
    return _float_up(_discrete_delta(_MP.mpf(epsilon), _composed_signal_to_noise(releases), _lattices(releases)))


def composed_epsilon(delta: float, releases: Sequence[DiscreteGaussian]) -> float:
    """A float ε, rounded up, at which several releases are together (ε, δ)-DP; 0 for no release.

    Guarantee, Assumes, Source, Args, Raises: as `composed_delta`, which it inverts for `delta` in (0, 1):
    `composed_delta(returned ε) <= delta`.
    """
    _check_delta(delta)
    if not releases:
        return 0.0
    mu, lattices, target = _composed_signal_to_noise(releases), _lattices(releases), _MP.mpf(delta)
    guess = _solve_epsilon(target, mu)
    below, above = _lattice_surcharge(guess, target, lattices)
    guess = _solve_epsilon(target * _MP.exp(-below) * (1 - _MP.exp(-_TAIL_NATS)), mu) + below + above
    return _smallest_float(
        lambda epsilon: _discrete_delta(_MP.mpf(epsilon), mu, lattices) <= delta, float(guess), least=0.0
    )


def calibrate_discrete_sigma(epsilon: float, delta: float, *, sensitivity: float, coordinates: int) -> float:
    """The smallest float σ at which `discrete_gaussian_delta` does not exceed `delta`.

    Guarantee:
        The discrete Gaussian mechanism with the returned σ is (epsilon, delta)-DP.
    Assumes, Source: as `discrete_gaussian_delta`.

    Args:
        epsilon: > 0, in nats.
        delta: in (0, 1).
        sensitivity: L2 sensitivity in lattice units, > 0.
        coordinates: d, the number of noisy integers of the release, >= 1.

    Returns:
        σ in lattice units, at least 1 and never below `calibrate_sigma` of the same arguments.
    Edge cases:
        Where the continuous optimum is below 1 the result is at least 1: coarser noise than the lattice has no proof.
        Within 1e-3 of the optimum for a sensitivity of 2^16 or more and delta <= 0.999; at a sensitivity of a few
        steps, or a delta of almost 1, the surcharge can be large, or leave no σ at all.
    Raises:
        PrivacyParameterError: an argument is not finite or outside its range.
    """
    _check_lattice(1.0, coordinates)
    continuous = calibrate_sigma(epsilon, delta, sensitivity=sensitivity)
    target = _MP.mpf(delta)
    below, above = _lattice_surcharge(_MP.mpf(epsilon), target, [(_MP.mpf(max(continuous, 1.0)), coordinates)])
    guess = continuous
    if below + above < epsilon:  # elsewhere the search below finds its own way
        inner_delta = target * _MP.exp(-below) * (1 - _MP.exp(-_TAIL_NATS))
        guess = float(sensitivity / _solve_signal_to_noise(epsilon - below - above, inner_delta))

    def satisfies(sigma: float) -> bool:
        mu = _signal_to_noise(sensitivity, sigma)
        return bool(_discrete_delta(_MP.mpf(epsilon), mu, [(_MP.mpf(sigma), coordinates)]) <= delta)

    return _smallest_float(satisfies, guess, least=1.0)


def noise_multiplier_lower_bound(*, sensitivity: float, sigma: float) -> float:
    """σ/Δ rounded down: what accountants of the continuous Gaussian call the noise multiplier."""
    ratio = sigma / sensitivity
    return math.nextafter(ratio, 0.0) if _MP.mpf(ratio) * sensitivity > sigma else ratio


def _delta(epsilon: Real, mu: Real) -> Real:
    """Theorem 8 at any real ε, with at least 30 correct digits."""
    offset = float(abs(mu / 2 - epsilon / mu) + mu)
    # Φ(a) - e^ε Φ(b) cancels to a fraction of about min(1, μ/|a|) of Φ(a), and errors of a grow |a|-fold in Φ(a).
    lost_digits = 2 * math.log10(1 + offset) + math.log10(1 + offset / float(mu)) + max(0.0, -math.log10(float(mu)))
    with _MP.workdps(_MP.dps + math.ceil(lost_digits)):
        a = mu / 2 - epsilon / mu
        return _normal_cdf(a) - _MP.exp(epsilon) * _normal_cdf(a - mu)


def _normal_cdf(x: Real) -> Real:
    return _MP.erfc(-x / _MP.sqrt(2)) / 2


def _solve_signal_to_noise(epsilon: Real, delta: Real) -> Real:
    """μ with δ(ε; μ) = delta, by Newton's method from below.

    ln δ is concave and increasing in μ with ∂δ/∂μ = φ(a), a = μ/2 - ε/μ, and the start, where Φ(a) = delta, is below
    the root; so the iterates rise to the root and never pass it (PROOF.md, section 2).
    """
    z = _start_quantile(delta)
    root = math.sqrt(z * z + 2 * float(epsilon))
    mu = _MP.mpf((z + root if z > 0 else 2 * float(epsilon) / (root - z)) * _AWAY)
    for _ in range(_MOST_NEWTON_STEPS):
        current = _delta(epsilon, mu)
        a = mu / 2 - epsilon / mu
        step = _MP.log(delta / current) * current / _MP.npdf(a)
        mu += step
        if abs(step) < mu * 1e-10:  # convergence is quadratic: the error is now below a float's
            break
    return mu


def _solve_epsilon(delta: Real, mu: Real) -> Real:
    """ε >= 0 with δ(ε; μ) = delta, or 0 when δ(0; μ) <= delta, by Newton's method from above.

    ln δ is concave and decreasing in ε with ∂δ/∂ε = -e^ε Φ(a - μ), and the start, where Φ(a) = delta, is above the
    root; so the iterates fall to the root and never pass it (PROOF.md, section 2).
    """
    if _delta(_MP.mpf(0), mu) <= delta:
        return _MP.mpf(0)
    epsilon = (mu * mu / 2 - mu * _start_quantile(delta)) / _AWAY
    for _ in range(_MOST_NEWTON_STEPS):
        current = _delta(epsilon, mu)
        slope = _MP.exp(epsilon) * _normal_cdf(-mu / 2 - epsilon / mu)
        step = _MP.log(current / delta) * current / slope
        epsilon += step
        if abs(step) < abs(epsilon) * 1e-10:
            break
    return max(epsilon, _MP.mpf(0))


def _start_quantile(delta: Real) -> float:
    """Φ⁻¹(delta) as a float; it only places a start, so a delta that no float holds is moved to the nearest float."""
    return NormalDist().inv_cdf(min(max(float(delta), 5e-324), math.nextafter(1.0, 0.0)))


def _discrete_delta(epsilon: Real, mu: Real, lattices: Lattices) -> Real:
    continuous = _delta(epsilon, mu)
    below, above = _lattice_surcharge(epsilon, continuous, lattices)
    tail = _MP.exp(min(epsilon, 0) - above - _TAIL_NATS) * continuous  # e^(ε - η₂ - t)
    return _MP.exp(below) * _delta(epsilon - below - above, mu) + tail


def _lattice_surcharge(epsilon: Real, delta: Real, lattices: Lattices) -> tuple[Real, Real]:
    """(η₁, η₂): bounds of the log-ratio of the discrete to the rounded continuous Gaussian, downwards and upwards.

    With P the discrete Gaussians of all `lattices` and Q the rounded continuous ones: P <= e^η₁ Q everywhere, and
    Q <= e^η₂ P except with Q-probability at most e^-t, t = max(ε, 0) - ln δ + 40 (PROOF.md, lemmas 1 to 3 and section
    6: each lattice may fail with an equal share of e^-t). Both of order d/24σ².
    """
    t = max(epsilon, _MP.mpf(0)) - _MP.log(delta) + _TAIL_NATS + _MP.log(len(lattices))
    below = above = _MP.mpf(0)
    for sigma, coordinates in lattices:
        below += coordinates / (24 * sigma**2)
        normaliser = 4 * _MP.exp(-2 * (_MP.pi * sigma) ** 2)
        radius = _MP.sqrt(coordinates) * (1 + 1 / (2 * sigma)) + _MP.sqrt(2 * t)  # T/σ
        above += coordinates * normaliser + radius**2 / (24 * sigma**2)
    return below, above


def _composed_signal_to_noise(releases: Sequence[DiscreteGaussian]) -> Real:
    """The μ of one Gaussian mechanism that is as private as all `releases` together."""
    with _MP.workdps(100):
        squares = [_signal_to_noise(release.sensitivity, release.sigma) ** 2 for release in releases]
        return _MP.sqrt(_MP.fsum(squares))


def _lattices(releases: Sequence[DiscreteGaussian]) -> Lattices:
    return [(_MP.mpf(release.sigma), release.coordinates) for release in releases]


def _smallest_float(holds: Callable[[float], bool], near: float, *, least: float = 5e-324) -> float:
    """The smallest float >= `least` at which the monotone `holds` is true, found outwards from `near`."""
    near = max(near, least)
    step = max(math.ulp(near), 1e-20)
    if holds(near):
        good, bad = near, near - step
        while bad >= least and holds(bad):
            step *= 2
            good, bad = bad, bad - step
        if bad < least:
            if holds(least):
                return least
            bad = least
    else:
        bad, good = near, near + step
        while not holds(good):
            step *= 2
            bad, good = good, good + step
    while math.nextafter(bad, math.inf) < good:
        middle = bad + (good - bad) / 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


def _signal_to_noise(sensitivity: float, sigma: float) -> Real:
    _check_positive("sensitivity", sensitivity)
    _check_positive("sigma", sigma)
    smallest, largest = _NOISE_MULTIPLIERS
    if not smallest <= sigma / sensitivity <= largest:
        raise PrivacyParameterError(
            f"sigma / sensitivity is {sigma / sensitivity:g}; it must lie between {smallest:g} and {largest:g}"
        )
    with _MP.workdps(100):  # the quotient's rounding must stay far below the digits that `_delta` can lose
        return _MP.mpf(sensitivity) / _MP.mpf(sigma)


def _float_up(value: Real) -> float:
    nearest = float(value)
    if nearest < value:
        nearest = math.nextafter(nearest, math.inf)
    return min(nearest, 1.0)


def _check_epsilon(epsilon: float, *, zero_allowed: bool = False) -> None:
    if not math.isfinite(epsilon) or epsilon < 0 or (epsilon == 0 and not zero_allowed):
        raise PrivacyParameterError(f"epsilon is {epsilon}; it must be a finite number above 0")
    if epsilon > _LARGEST_EPSILON:
        raise PrivacyParameterError(f"epsilon is {epsilon}; above {_LARGEST_EPSILON:g} nothing is protected")


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyParameterError(f"delta is {delta}; it must lie strictly between 0 and 1")


def _check_positive(name: str, value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise PrivacyParameterError(f"{name} is {value}; it must be a finite number above 0")


def _check_lattice(sigma: float, coordinates: int) -> None:
    if not math.isfinite(sigma) or sigma < 1:
        raise PrivacyParameterError(f"sigma is {sigma} lattice steps; the discrete Gaussian's proof needs at least 1")
    if coordinates < 1:
        raise PrivacyParameterError(f"the release has {coordinates} coordinates; it must have at least 1")
