"""Secrets of a call: taken out of the request, checked for their form, and made known to the log's redaction."""

import base64
import binascii
import re
from collections.abc import Mapping

import msgspec

from csi.errors import InvalidArgument
from csi.framework.backend import HostKeys
from foundation.daemon import logs

# NVMe TCP Transport 1.1, 3.6.1.4 and NVMe Base 2.0, 8.13.5.8: `<prefix>:<hash>:<base64 of key and CRC-32>:`.
_DHCHAP = re.compile(r"DHHC-1:0[0-3]:([A-Za-z0-9+/=]+):")
_TLS_PSK = re.compile(r"NVMeTLSkey-1:0[0-2]:([A-Za-z0-9+/=]+):")
_HEX_KEY = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{64}")


class EncryptionKeys(msgspec.Struct, frozen=True):
    """AES-XTS, both in hex."""

    key: str
    tweak_key: str

    def __repr__(self) -> str:
        return "EncryptionKeys(…)"


def hide(secrets: Mapping[str, str]) -> None:
    """No secret of a request may appear in a log line or an error, whatever goes wrong later."""
    for value in secrets.values():
        if value:
            logs.secret(value)


def host_keys(secrets: Mapping[str, str], *, authentication: bool, encryption_in_transit: bool) -> HostKeys:
    """Keys `dhchapKey`, `dhchapCtrlrKey` (optional, for both directions) and `tlsPsk`. Raises InvalidArgument."""
    dhchap = _needed(secrets, "dhchapKey", "authentication", _DHCHAP, "DHHC-1:0x:…:") if authentication else ""
    ctrlr = secrets.get("dhchapCtrlrKey", "") if authentication else ""
    if ctrlr:
        _needed(secrets, "dhchapCtrlrKey", "authentication", _DHCHAP, "DHHC-1:0x:…:")
    psk = ""
    if encryption_in_transit:
        psk = _needed(secrets, "tlsPsk", "encryptionInTransit", _TLS_PSK, "NVMeTLSkey-1:0x:…:")
    return HostKeys(dhchap_key=dhchap, dhchap_ctrlr_key=ctrlr, tls_psk=psk)


def encryption_keys(secrets: Mapping[str, str]) -> EncryptionKeys:
    """Keys `encryptionKey` and `encryptionTweakKey`: 128 or 256 bits each in hex, not equal. Raises InvalidArgument."""
    for name in ("encryptionKey", "encryptionTweakKey"):
        if not _HEX_KEY.fullmatch(_present(secrets, name, "encryption")):
            raise InvalidArgument(f"secret {name} must be 32 or 64 hex digits (AES-XTS with 128 or 256 bits)")
    key, tweak = secrets["encryptionKey"], secrets["encryptionTweakKey"]
    if len(key) != len(tweak):
        raise InvalidArgument("secrets encryptionKey and encryptionTweakKey must be of one length")
    if key.lower() == tweak.lower():
        raise InvalidArgument("secrets encryptionKey and encryptionTweakKey must differ")
    return EncryptionKeys(key, tweak)


def _present(secrets: Mapping[str, str], name: str, parameter: str) -> str:
    if not secrets.get(name):
        raise InvalidArgument(
            f"secret {name} is missing: the volume's StorageClass says {parameter}=true; name a Secret that holds it "
            "in csi.storage.k8s.io/controller-publish-secret-name"
        )
    return secrets[name]


def _needed(secrets: Mapping[str, str], name: str, parameter: str, form: re.Pattern[str], shown: str) -> str:
    match = form.fullmatch(_present(secrets, name, parameter))
    if match is None:
        raise InvalidArgument(f"secret {name} is not in NVMe's interchange format ({shown})")
    try:
        raw = base64.b64decode(match[1], validate=True)
    except binascii.Error as error:
        raise InvalidArgument(f"secret {name} is not valid base64 between its colons") from error
    if len(raw) - 4 not in (32, 48, 64) or binascii.crc32(raw[:-4]).to_bytes(4, "little") != raw[-4:]:
        raise InvalidArgument(f"secret {name} is damaged: its length or its check sum is wrong")
    return secrets[name]
