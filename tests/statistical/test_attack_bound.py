"""What an attacker can prove: a lower bound on epsilon from released values alone, for the real mechanism and for bugs.

The attacker knows every record but one, sees releases of neighbouring data sets X and X', and looks for an event E
with P(E | X) > e^ε P(E | X') + δ. Whoever finds one has proved that the mechanism is not (ε, δ)-DP. Events are
thresholds of the best statistics there are: for Gaussian noise the projection on the difference of the two sums (the
likelihood ratio is monotone in it, so no event does better), and each released number on its own, which finds what was
not noised at all. Statistic and threshold are chosen on a fifth of the releases; the bound comes from the rest.

Every release goes through `ClassSums` and `release`. Two classes and two features keep it fast, and δ is large because
a bound from 100,000 releases sees nothing that happens once in a million; the code is the same at any δ.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_examples import FEATURE_MAP
from scipy import stats

from dpmepf.artifacts import ledger as ledger_module
from dpmepf.artifacts.accounts import Budget
from dpmepf.artifacts.errors import RegisterBudgetError
from dpmepf.artifacts.ledger import Ledger
from dpmepf.artifacts.register import Register
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.embed import noise as noise_module
from dpmepf.embed import release as release_module
from dpmepf.embed.release import release
from dpmepf.embed.summing import ClassSums

ADD_OR_REMOVE, REPLACE = NeighbouringRelation.ADD_OR_REMOVE_ONE, NeighbouringRelation.REPLACE_ONE
EPSILON, DELTA = 1.0, 0.1
RELEASES = {ADD_OR_REMOVE: 100_000, REPLACE: 30_000}  # half of them of X and half of X'
RELEASES_OF_BUGS = 20_000
CHOOSING = 5  # every fifth release serves to choose the event
FALSE_ALARM = 1e-6  # that the bound exceeds an epsilon that the mechanism has
THRESHOLDS = np.linspace(0.5, 0.9995, 400)  # as quantiles of both
DATASET = "attacked"

Data = tuple[tuple[tuple[float, float], int], ...]
OTHERS: Data = (((0.6, 0.8), 0), ((0.3, 0.1), 1))
# Pairs as far apart as the sensitivity allows: the record there or not; another direction and another class.
NEIGHBOURS: dict[NeighbouringRelation, tuple[Data, Data]] = {
    ADD_OR_REMOVE: ((*OTHERS, ((1.0, 0.0), 0)), OTHERS),
    REPLACE: ((*OTHERS, ((1.0, 0.0), 0)), (*OTHERS, ((0.0, 1.0), 1))),
}


def released_values(
    data: Data, relation: NeighbouringRelation, charge: Callable[[Ledger], None] | None = None
) -> np.ndarray:
    """What one release of `data` shows: the integers that the artifact stores, K·D sums and K counts."""
    sums = ClassSums(class_count=2, dimension=2, non_negative=True)
    sums.add(np.array([features for features, _ in data]), np.array([label for _, label in data]))
    artifact = release(
        sums,
        classes=("a", "b"),
        feature_map=FEATURE_MAP,
        epsilon=EPSILON,
        delta=DELTA,
        relation=relation,
        dataset_name=DATASET,
        charge=charge,
    )
    return np.concatenate([artifact.noisy_sums.ravel(), artifact.noisy_counts])


def releases_that_the_register_allows(folder: Path, relation: NeighbouringRelation) -> int:
    """Of one data set, with a budget of exactly one release; the register sees ledgers, never data."""
    book = Register(folder / "register.sqlite")
    budget = Budget(epsilon=EPSILON, delta=DELTA, relation=relation)
    for number in range(2):
        try:
            released_values(OTHERS, relation, charge=functools.partial(book.charge, budget=budget))
        except RegisterBudgetError:
            return number
    return 2


def views(data: Data, relation: NeighbouringRelation, *, count: int, allowed: int) -> np.ndarray:
    """`count` × numbers: what the attacker sees of `data`, summed over the releases that the register allowed.

    The sum is all there is to know: the noise of each release has the same distribution.
    """
    return np.array([sum(released_values(data, relation) for _ in range(allowed)) for _ in range(count)])


def difference(relation: NeighbouringRelation) -> np.ndarray:
    """The direction in which the sums of the two data sets lie apart; its length does not matter."""
    there, not_there = ((vector, label) for vector, label in (data[-1] for data in NEIGHBOURS[relation]))
    weight = 0.1
    direction = np.zeros(6)
    direction[2 * there[1] : 2 * there[1] + 2] += there[0]
    direction[4 + there[1]] += weight
    if relation is REPLACE:
        direction[2 * not_there[1] : 2 * not_there[1] + 2] -= not_there[0]
        direction[4 + not_there[1]] -= weight
    return direction


def statistics(seen: np.ndarray, relation: NeighbouringRelation) -> np.ndarray:
    """views × statistics: the projection on the difference, then each number; each in both directions."""
    direction = difference(relation)
    columns = np.column_stack([seen @ direction, seen * np.where(direction < 0, -1.0, 1.0)])
    return np.column_stack([columns, -columns])


def proven_epsilon(hits: np.ndarray, hits_elsewhere: np.ndarray, of: int) -> np.ndarray:
    """The ε that E happening `hits` times of X and `hits_elsewhere` times of X' proves at DELTA, by Clopper-Pearson.

    Wrong with probability FALSE_ALARM / 2.
    """
    alpha = FALSE_ALARM / 4  # two directions, two probabilities
    low = np.where(hits == 0, 0.0, stats.beta.ppf(alpha, np.maximum(hits, 1), of - hits + 1))
    fewer = np.minimum(hits_elsewhere, of - 1)
    high = np.where(hits_elsewhere == of, 1.0, stats.beta.ppf(1 - alpha, fewer + 1, of - fewer))
    return np.log(np.maximum(low - DELTA, 1e-300) / high)


def best_event(of: np.ndarray, elsewhere: np.ndarray) -> tuple[int, float]:
    """The statistic and the threshold whose event proves most, on the part that is for choosing."""
    best = (-math.inf, 0, 0.0)
    for column in range(of.shape[1]):
        thresholds = np.unique(np.quantile(np.concatenate([of[:, column], elsewhere[:, column]]), THRESHOLDS))
        hits, hits_elsewhere = (
            len(part) - np.searchsorted(np.sort(part[:, column]), thresholds, side="left") for part in (of, elsewhere)
        )
        proven = proven_epsilon(hits, hits_elsewhere, len(of))
        at = int(np.argmax(proven))
        best = max(best, (float(proven[at]), column, float(thresholds[at])))
    return best[1], best[2]


def bound(seen: np.ndarray, seen_elsewhere: np.ndarray, relation: NeighbouringRelation) -> float:
    """The attacker's lower bound on ε at DELTA: too high with probability at most FALSE_ALARM."""
    first, second = (statistics(views, relation) for views in (seen, seen_elsewhere))
    for_choosing = np.arange(len(seen)) % CHOOSING == 0
    proven = []
    for one, other in ((first, second), (second, first)):
        column, threshold = best_event(one[for_choosing], other[for_choosing])
        hits = [np.count_nonzero(part[~for_choosing, column] >= threshold) for part in (one, other)]
        size = int(np.count_nonzero(~for_choosing))
        proven.append(float(proven_epsilon(np.array(hits[0]), np.array(hits[1]), size)))
    return max(0.0, *proven)


class InThisThread(Executor):
    """In place of the thread pool: to start threads takes ten times as long as to draw six numbers."""

    def __init__(self, **_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **options))
        return future


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """All releases have the same parameters, so their ledger is planned once; it depends on no data."""
    real = release_module.plan_release

    @functools.cache
    def plan(**parameters: Any) -> Ledger:
        return real(**parameters)

    monkeypatch.setattr(release_module, "plan_release", plan)
    monkeypatch.setattr(noise_module, "ThreadPoolExecutor", InThisThread)


def attack(relation: NeighbouringRelation, folder: Path, releases: int) -> float:
    allowed = releases_that_the_register_allows(folder, relation)
    there, elsewhere = (views(data, relation, count=releases // 2, allowed=allowed) for data in NEIGHBOURS[relation])
    return bound(there, elsewhere, relation)


@pytest.mark.slow
@pytest.mark.parametrize("relation", NEIGHBOURS, ids=lambda relation: relation.value)
def test_no_attack_proves_more_than_the_claim_and_it_comes_close(
    relation: NeighbouringRelation, tmp_path: Path
) -> None:
    """False alarm 1e-6 for `<= EPSILON`. That the bound comes close shows that the attack is a good one.

    Seen: 0.86 of the claim (100,000 releases, add or remove), 0.74 (30,000, replace). The bugs below: 1.4 to 6.2.
    """
    proven = attack(relation, tmp_path, RELEASES[relation])
    assert 0.5 * EPSILON < proven <= EPSILON


def half_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    real = release_module.add_discrete_gaussian_noise
    monkeypatch.setattr(
        release_module, "add_discrete_gaussian_noise", lambda values, *, sigma, **_: real(values, sigma=sigma / 2)
    )


def half_the_sensitivity(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ledger_module.sensitivity.sensitivity_upper_bound
    monkeypatch.setattr(ledger_module.sensitivity, "sensitivity_upper_bound", lambda squared: real(squared) / 2)


def an_uncharged_second_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Register, "charge", Register.check)


def counts_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    real = release_module.add_discrete_gaussian_noise

    def noise(values: np.ndarray, **parameters: object) -> np.ndarray:
        noisy = real(values, **parameters)  # type: ignore[arg-type]
        noisy[-2:] = values[-2:]
        return noisy

    monkeypatch.setattr(release_module, "add_discrete_gaussian_noise", noise)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug", [half_the_noise, half_the_sensitivity, an_uncharged_second_release, counts_without_noise]
)
def test_an_attack_proves_that_a_planted_bug_breaks_the_claim(
    bug: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    assert attack(ADD_OR_REMOVE, tmp_path, RELEASES_OF_BUGS) > EPSILON


def test_the_register_allows_one_release_of_the_budget_and_the_planted_bug_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert releases_that_the_register_allows(tmp_path, ADD_OR_REMOVE) == 1
    an_uncharged_second_release(monkeypatch)
    assert releases_that_the_register_allows(tmp_path / "bug", ADD_OR_REMOVE) == 2
