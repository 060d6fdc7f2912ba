"""What signer and renewer agree on: the signer's name and what a certificate may be used for."""

from typing import Final

SIGNER: Final = "dpu-offload.io/node"
USAGES: Final = ("digital signature", "client auth", "server auth")
CA_FILE: Final = "ca.crt"
CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"
