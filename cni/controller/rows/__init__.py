"""OVN northbound rows as the controller wants them, each known by who owns it."""

from cni.controller.rows.ids import EMPTY, Member, Owner, Row, RowId, State

__all__ = ["EMPTY", "Member", "Owner", "Row", "RowId", "State"]
