"""C2PA content credentials: a signed statement in the picture file that a machine drew it (C2PA 2.x, https://c2pa.org).

Off until the settings name the operator's certificate and key. The signature covers the finished file, metadata and
all; what it says is little: which software, when, that the source is a trained algorithm. No prompt is in it.
Needs the extra `c2pa` (c2pa-python).
"""

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zturbo import __version__
from zturbo.config import Config
from zturbo.errors import ConfigError
from zturbo.pictures import AI_SOURCE

EXPIRY_TOLD_DAYS = 30  # from when on a server's log says that the certificate ends
INSTALL = "install it: pip install '.[c2pa]' in zturbo's folder"


class Signer:
    """Signs picture files with the operator's key. Made by `open_signer`; may be used from several threads.

    Args:
        certificate: PEM, the signing certificate first, then those that it rests on.
        key: PEM, PKCS#8.
        algorithm: the name that C2PA has for the key's kind, as es256.

    Raises:
        ValueError: the certificate is none.
    """

    def __init__(self, certificate: bytes, key: bytes, algorithm: str) -> None:
        import c2pa
        from cryptography.x509 import load_pem_x509_certificates

        self._c2pa: Any = c2pa
        self._ends = min(one.not_valid_after_utc for one in load_pem_x509_certificates(certificate))
        self._info = c2pa.C2paSignerInfo(algorithm, certificate, key, None)
        # The library's automatic thumbnail would be 190 KB to 1 MB a picture.
        self._settings = {"builder": {"thumbnail": {"enabled": False}}}

    @property
    def days_left(self) -> int:
        """Whole days for which the certificate, and those that it rests on, are still good."""
        return (self._ends - datetime.now(UTC)).days

    def check(self) -> None:
        """
        Raises:
            ConfigError: the certificate has expired.
        """
        if datetime.now(UTC) >= self._ends:
            raise ConfigError(
                f"c2pa_certificate: it, or one that it rests on, expired on {self._ends:%Y-%m-%d}",
                "put a new one in its place and start the server again",
            )

    def sign(self, data: bytes, output_format: str) -> bytes:
        """A picture file with its credentials, 3 to 10 KB longer.

        Args:
            data: a finished png, jpeg or webp file.
            output_format: which of them.

        Raises:
            ConfigError: the certificate has expired.
        """
        self.check()
        c2pa, mime = self._c2pa, f"image/{output_format}"
        manifest = {
            "claim_generator_info": [{"name": "zturbo", "version": __version__}],
            "format": mime,
            "assertions": [
                {
                    "label": "c2pa.actions.v2",
                    "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": AI_SOURCE}]},
                }
            ],
        }
        signed = io.BytesIO()
        context = c2pa.Context(c2pa.Settings.from_dict(self._settings), c2pa.Signer.from_info(self._info))
        with context, c2pa.Builder(json.dumps(manifest), context) as builder:
            builder.sign(mime, io.BytesIO(data), signed)
        return signed.getvalue()


def open_signer(config: Config) -> Signer | None:
    """The signer that the settings ask for; None where they name no certificate. It has signed once when this returns.

    Raises:
        ConfigError: one of the two files is not named, cannot be read, or they do not belong together.
    """
    certificate, key = config.c2pa_certificate, config.c2pa_key
    if not certificate and not key:
        return None
    if not (certificate and key):
        raise ConfigError("content credentials need both c2pa_certificate and c2pa_key", "set the other one as well")
    chain, secret = _read(Path(certificate), "c2pa_certificate"), _read(Path(key), "c2pa_key")
    try:
        signer = Signer(chain, secret, _algorithm(secret))
        signer.sign(_probe(), "png")
    except ImportError as error:
        raise ConfigError(f"content credentials need the package {error.name}", INSTALL) from error
    except ConfigError:
        raise
    except Exception as error:  # the library's own classes, and OpenSSL's
        reason = str(error) or type(error).__name__
        raise ConfigError(
            f"cannot sign with {certificate} and {key}: {reason}", "see docs/guides/provenance.md"
        ) from error
    return signer


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from error


def _algorithm(secret: bytes) -> str:
    """C2PA's name of a private key's kind (C2PA 2.x, 13.2)."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(secret, password=None)
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise ConfigError("c2pa_key: must be an EC key on P-256, P-384 or P-521, an Ed25519 or an RSA key")


_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


def _probe() -> bytes:
    """The smallest picture, to try a certificate on."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()
