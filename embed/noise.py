"""Trusted core: discrete Gaussian noise, sampled exactly by OpenDP, seeded by the operating system's entropy.

There is no seed, no generator to pass in and no way to switch the noise off.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import numpy.typing as npt
from opendp import measurements  # not opendp.prelude: it loads scikit-learn and scipy.stats, a second at every start
from opendp.domains import atom_domain, vector_domain
from opendp.metrics import l2_distance
from opendp.mod import enable_features

from dpmepf.artifacts.ledger import LARGEST_SIGMA
from dpmepf.shared.errors import DpmepfError

CHUNK_DRAWS = 1 << 14  # about 1.5 MB of Python integers in flight for each thread


class NoiseError(DpmepfError):
    """Noise could not be drawn; no un-noised value goes on."""


def add_discrete_gaussian_noise(
    values: npt.NDArray[np.int64], *, sigma: float, progress: Callable[[int], None] | None = None
) -> npt.NDArray[np.int64]:
    """Release `values` through the discrete Gaussian mechanism N_Z(0, σ²), independently in each coordinate.

    Guarantee: P(noise = n) ∝ exp(−n²/2σ²) over the integers, exactly: no floating-point sample is involved. The result
        is the mechanism's output or its saturation to int64, a post-processing. What this promises in (ε, δ) for a
        given sensitivity is `dpmepf.artifacts.accounting`'s claim.
    Assumes: OpenDP's sampler, the generator of OpenSSL that it draws from, and the operating system's entropy that
        seeds that.
    Source: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), algorithm 3, in OpenDP's `make_gaussian` over
        `vector_domain(atom_domain(T="i64"))`, whose `scale` is the σ above; PROOF.md, claim 4.
    Args:
        values: one-dimensional int64, lattice units. sigma: σ in lattice units, 1 <= σ <= 2^56.
        progress: called from this thread with the number of coordinates just finished (a public number).
    Returns: int64 of the same length; the argument is left as it was.
    Edge cases: no coordinate gives no coordinate. Sums within ±2^62 saturate only beyond 64σ, in practice never.
    Raises: NoiseError when σ is out of range, entropy is missing or OpenDP fails in any way.
    """
    if values.ndim != 1 or values.dtype != np.int64:
        raise NoiseError("noise is added to one-dimensional 64-bit integers only")
    if not (math.isfinite(sigma) and 1.0 <= sigma <= LARGEST_SIGMA):
        raise NoiseError(f"the noise scale is {sigma:g} lattice units; allowed are 1 to 2^56; choose another epsilon")
    noisy = np.empty_like(values)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as threads:  # OpenDP's calls release the GIL
        chunks = [slice(start, start + CHUNK_DRAWS) for start in range(0, len(values), CHUNK_DRAWS)]
        running = {threads.submit(_noisy_chunk, values[chunk], sigma): chunk for chunk in chunks}
        try:
            for finished in as_completed(running):
                chunk = running.pop(finished)
                noisy[chunk] = finished.result()
                if progress is not None:
                    progress(len(noisy[chunk]))
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
    return noisy


def _noisy_chunk(values: npt.NDArray[np.int64], sigma: float) -> npt.NDArray[np.int64]:
    try:
        enable_features("contrib")
        space = vector_domain(atom_domain(T="i64")), l2_distance(T="f64")
        mechanism = measurements.make_gaussian(*space, scale=sigma)
        noisy = np.asarray(mechanism(values), dtype=np.int64)
    except Exception as error:
        # `from None`: the library's own text could quote a value.
        raise NoiseError(
            f"OpenDP could not draw noise ({type(error).__name__}), perhaps for want of entropy; nothing was released"
        ) from None
    if noisy.shape != values.shape:
        raise NoiseError("OpenDP returned another number of values than it was given; nothing was released")
    return noisy
