"""Trusted core: which two data sets count as neighbours."""

from __future__ import annotations

from enum import StrEnum


class NeighbouringRelation(StrEnum):
    """The change of one record that the guarantee hides."""

    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    """One record more or fewer; the number of records is private."""

    REPLACE_ONE = "replace-one"
    """One record changed into any other; the number of records is public."""

    @property
    def other(self) -> NeighbouringRelation:
        """The relation that is not this one."""
        relations = NeighbouringRelation
        return relations.REPLACE_ONE if self is relations.ADD_OR_REMOVE_ONE else relations.ADD_OR_REMOVE_ONE
