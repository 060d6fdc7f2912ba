"""Vital product data of a PCI function: the resource list of PCI 3.0 appendix I."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_LARGE = 0x80
_NAME_TAG, _READ_ONLY_TAG, _READ_WRITE_TAG = 0x82, 0x90, 0x91
_END_TAG = 0x0F


@dataclass(frozen=True)
class Vpd:
    """Product name and two-letter keywords (PN, SN, V0.., VU); values without padding blanks and NULs."""

    name: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def vuid(self) -> str:
        """The function's card-wide permanent identity (keyword VU), "" when it has none."""
        return self.fields.get("VU", "")


def parse(data: bytes) -> Vpd:
    """Never raises: a malformed or cut list gives what stood before the damage."""
    name = ""
    fields: dict[str, str] = {}
    at = 0
    while at < len(data):
        tag = data[at]
        if not tag & _LARGE:
            if tag >> 3 == _END_TAG:
                break
            at += 1 + (tag & 0x07)
            continue
        if at + 3 > len(data):
            break
        length = int.from_bytes(data[at + 1 : at + 3], "little")
        body = data[at + 3 : at + 3 + length]
        if tag == _NAME_TAG:
            name = _text(body)
        elif tag in (_READ_ONLY_TAG, _READ_WRITE_TAG):
            fields |= _keywords(body)
        at += 3 + length
    return Vpd(name, fields)


def _keywords(body: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    while at + 3 <= len(body):
        keyword, length = body[at : at + 2], body[at + 2]
        value = body[at + 3 : at + 3 + length]
        if len(value) < length or not keyword.isalnum():
            break
        # RV carries a checksum, RW free room: neither is text.
        if keyword not in (b"RV", b"RW"):
            found[keyword.decode("ascii")] = _text(value)
        at += 3 + length
    return found


def _text(raw: bytes) -> str:
    return raw.decode("ascii", "replace").strip("\0 ")
