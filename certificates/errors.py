"""What can be wrong with requests, authorities and their files."""


class CertificatesError(Exception):
    """Root of these daemons' errors."""


class Refused(CertificatesError):
    """A request is not granted; the message is what its author reads."""


class AuthorityUnusable(CertificatesError):
    """The stored authority cannot be read; nothing is signed until somebody has looked at it."""


class NotGranted(CertificatesError):
    """The signer has refused this pod's request, or did not answer in time."""


class NothingTrusted(CertificatesError):
    """The file with what is trusted holds no certificate."""
