"""Whether labels satisfy a LabelSelector (pure)."""

from __future__ import annotations

from collections.abc import Mapping

from foundation.kube.models.meta import LabelSelector, LabelSelectorRequirement


class InvalidSelector(ValueError):
    """A selector which the API would refuse: unknown operator, or values where none may be, or none where some must."""


def matches(selector: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    """True if `labels` satisfy every term; an empty selector matches all, an absent one (None) nothing.

    Raises InvalidSelector. Source: meta/v1 LabelSelector; NotIn and DoesNotExist hold for an absent label.
    """
    if selector is None:
        return False
    for key, value in (selector.match_labels or {}).items():
        if labels.get(key) != value:
            return False
    return all(_holds(requirement, labels) for requirement in selector.match_expressions or ())


def validate(selector: LabelSelector | None) -> None:
    """Raise InvalidSelector for a selector that can't be evaluated."""
    for requirement in (selector.match_expressions if selector else None) or ():
        _holds(requirement, {})


def _holds(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    values = requirement.values or ()
    if requirement.operator in ("In", "NotIn"):
        if not values:
            raise InvalidSelector(f"{requirement.operator} on label {requirement.key!r} needs at least one value")
        inside = requirement.key in labels and labels[requirement.key] in values
        return inside if requirement.operator == "In" else not inside
    if requirement.operator in ("Exists", "DoesNotExist"):
        if values:
            raise InvalidSelector(f"{requirement.operator} on label {requirement.key!r} takes no values")
        return (requirement.key in labels) == (requirement.operator == "Exists")
    raise InvalidSelector(
        f"unknown operator {requirement.operator!r} on label {requirement.key!r}: use In, NotIn, Exists or DoesNotExist"
    )
