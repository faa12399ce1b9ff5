"""Trusted core: the account of a data set: its budget, the releases charged to it, and whether another one fits.

The releases of one data set add up, exactly: Gaussian mechanisms compose. Nothing here reads or writes a file; the book
that keeps accounts is in register.py.

Proof: PROOF.md, section 6.
"""

from __future__ import annotations

import dataclasses
import decimal
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from dpmepf.artifacts import accounting
from dpmepf.artifacts.claims import check_ledger, implied_sensitivity
from dpmepf.artifacts.errors import RegisterBudgetError, RegisterError
from dpmepf.artifacts.ledger import ONE_IMAGE, UNITS, UNNAMED, Ledger, check_dataset_name, folded_name, plan_release
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.errors import UsageError

_FITTING_DIGITS = 3
_FITTING_HALVINGS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What all releases of one data set may spend together. epsilon > 0, in nats; delta in (0, 1).

    unit_of_privacy: whom the budget is for, one image or one person: releases for the other do not add up with it.
    """

    epsilon: float
    delta: float
    relation: NeighbouringRelation
    unit_of_privacy: str = ONE_IMAGE

    def __post_init__(self) -> None:
        if self.unit_of_privacy not in UNITS:
            raise RegisterError(f"a budget's unit of privacy is {self.unit_of_privacy!a}; it is {' or '.join(UNITS)}")
        if not isinstance(self.relation, NeighbouringRelation):
            raise RegisterError(f"a budget's relation is {self.relation!a}, which is no neighbouring relation")
        if type(self.epsilon) is not float or type(self.delta) is not float:
            raise RegisterError("a budget's epsilon and delta must be floating-point numbers")
        try:
            accounting.calibrate_sigma(self.epsilon, self.delta, sensitivity=1.0)  # refuses what is out of range
        except ArithmeticError:
            raise accounting.PrivacyParameterError(
                f"a budget of epsilon {self.epsilon:g}, delta {self.delta:g} is too small to be reckoned with"
            ) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisteredRelease:
    """One entry of the book: a release that was charged. time: UTC, ISO 8601."""

    number: int
    time: str
    ledger: Ledger


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """One data set's budget and releases."""

    dataset: str
    budget: Budget
    releases: tuple[RegisteredRelease, ...] = ()

    def epsilon_spent(self, delta: float | None = None) -> float:
        """ε of all releases together at `delta`, by default the budget's, rounded up; 0 for none."""
        return accounting.composed_epsilon(self.budget.delta if delta is None else delta, self.mechanisms())

    def delta_spent(self) -> float:
        """δ of all releases together at the budget's ε, rounded up; 0 for none."""
        return accounting.composed_delta(self.budget.epsilon, self.mechanisms())

    def mechanisms(self, *further: Ledger) -> list[accounting.DiscreteGaussian]:
        """The mechanisms of all releases and of `further` ones, with their sensitivities under the budget's relation.

        A release made under the other relation counts with what its mechanism's parameters imply under this one.

        Raises: RegisterError for a release that is for another unit of privacy than the budget.
        """
        ledgers = [release.ledger for release in self.releases] + list(further)
        if any(ledger.unit_of_privacy != self.budget.unit_of_privacy for ledger in ledgers):
            raise RegisterError(
                f"the budget is for {self.budget.unit_of_privacy}: other releases do not add up with it"
            )
        return [
            accounting.DiscreteGaussian(
                sensitivity=implied_sensitivity(ledger, self.budget.relation),
                sigma=ledger.sigma,
                coordinates=ledger.coordinates,
            )
            for ledger in ledgers
        ]

    def holds(self, ledger: Ledger) -> bool:
        """Whether the budget holds `ledger`'s release beside those made already."""
        return accounting.composed_delta(self.budget.epsilon, self.mechanisms(ledger)) <= self.budget.delta

    def largest_epsilon(self, ledger: Ledger) -> float:
        """An ε, close to the largest, rounded down to 3 digits, with which `ledger`'s release would fit; 0 if there is
        none above a 4,096th of what was requested.
        """
        low, high = 0.0, ledger.epsilon
        for _ in range(_FITTING_HALVINGS):
            middle = low + (high - low) / 2
            low, high = (middle, high) if self._holds_at(ledger, middle) else (low, middle)
        rounded = float(decimal.Context(prec=_FITTING_DIGITS, rounding=decimal.ROUND_DOWN).create_decimal(low))
        return rounded if rounded > 0 and self._holds_at(ledger, rounded) else 0.0

    def _holds_at(self, ledger: Ledger, epsilon: float) -> bool:
        try:
            return self.holds(
                plan_release(
                    epsilon=epsilon,
                    delta=ledger.delta,
                    relation=ledger.relation,
                    feature_dimension=ledger.feature_dimension,
                    class_count=ledger.class_count,
                    non_negative_features=ledger.non_negative_features,
                    unit_of_privacy=ledger.unit_of_privacy,
                )
            )
        except UsageError:  # too small an epsilon for 64-bit sums
            return False


def check_register_name(dataset: str) -> None:
    """Refuse a name under which a data set could not be told from another, or no release could be charged.

    Raises:
        UsageError: it is empty, too long or not printable.
        RegisterError: it is not in Unicode's normal form C, has spaces around it, or is that of unnamed releases.
    """
    check_dataset_name(dataset)
    if dataset == UNNAMED or dataset != unicodedata.normalize("NFC", dataset) or dataset != dataset.strip():
        raise RegisterError(
            f"the data set's name {dataset!a} is no name for a register: choose one without spaces around it, in "
            f"Unicode normal form C, other than {UNNAMED!a}"
        )


def account_to_charge(accounts: Mapping[str, Account], ledger: Ledger, budget: Budget | None, path: Path) -> Account:
    """The account of `ledger`'s data set, of the register at `path`, or a new one with `budget`.

    Raises:
        RegisterBudgetError: no budget, another than is set, or for another unit of privacy; or the name is almost that
            of another data set.
        RegisterError, UsageError: as `check_register_name`.
    """
    dataset = ledger.dataset_name
    account = accounts.get(dataset)
    if account is None:
        if budget is None:
            raise RegisterBudgetError(
                f"the register {path} knows no data set {dataset!a}: set its budget once, with --budget-eps and "
                "--budget-delta, or check the name"
            )
        check_register_name(dataset)
        refuse_similar_name(accounts, dataset)
        account = Account(dataset=dataset, budget=budget)
    if ledger.unit_of_privacy != account.budget.unit_of_privacy:
        raise RegisterBudgetError(
            f"the budget of the data set {dataset!a} is for {account.budget.unit_of_privacy}, this release for "
            f"{ledger.unit_of_privacy}: the two do not add up; release it as its budget says"
        )
    if budget is not None and budget != account.budget:
        raise RegisterBudgetError(
            f"the data set {dataset!a} has the budget epsilon {account.budget.epsilon:g}, delta "
            f"{account.budget.delta:g}, {account.budget.relation.value}, which is set once: leave --budget-eps and "
            "--budget-delta out"
        )
    return account


def refuse_similar_name(accounts: Mapping[str, Account], dataset: str) -> None:
    """Raise RegisterBudgetError for a name like another's: the two would be two budgets for the same images."""
    similar = next((known for known in accounts if folded_name(known) == folded_name(dataset)), None)
    if similar is not None:
        raise RegisterBudgetError(
            f"the data set's name {dataset!a} is almost that of {similar!a}, which has a budget: use that name, or one "
            "that differs in a letter or digit, not in case, spaces, hyphens and other marks alone"
        )


def refuse_inconsistent(ledger: Ledger) -> None:
    """Raise RegisterError if the ledger's own numbers contradict each other."""
    failed = [check for check in check_ledger(ledger, coordinates=ledger.coordinates) if not check.holds]
    if failed:
        raise RegisterError(f"the ledger contradicts itself ({failed[0].name}): {failed[0].detail}")


def refuse_over_budget(account: Account, ledger: Ledger) -> None:
    """Raise RegisterBudgetError, saying what would fit, if the budget does not hold `ledger`'s release as well."""
    if account.holds(ledger):
        return
    budget = account.budget
    spent = account.epsilon_spent()
    fitting = account.largest_epsilon(ledger)
    advice = f"--eps {fitting:g} at this delta would fit" if fitting > 0 else "no epsilon at this delta would fit"
    raise RegisterBudgetError(
        f"the data set {account.dataset!a} is out of budget for this release: requested epsilon {ledger.epsilon:g}, "
        f"delta {ledger.delta:g}; spent epsilon {spent:.4g} of {budget.epsilon:g} at delta {budget.delta:g} "
        f"({budget.relation.value}), remaining {max(budget.epsilon - spent, 0.0):.4g} by subtraction, though releases "
        f"add up to less; {advice}; "
        "nothing was charged and nothing was released"
    )
