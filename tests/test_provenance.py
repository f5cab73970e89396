"""Content credentials: signed, checked, and broken by a single changed byte; what does not fit is refused."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from tests.api.conftest import Instant, serving
from tests.api.test_images import post
from zturbo.api.serve import run
from zturbo.config import Config
from zturbo.errors import ConfigError
from zturbo.params import OUTPUT_FORMATS
from zturbo.pictures import AI_SOURCE, Settings, encode, read_metadata
from zturbo.provenance import open_signer

c2pa = pytest.importorskip("c2pa")
SECRETS: dict[str, Any] = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
}


def certificate(folder: Path, kind: str = "es256", days: float = 30) -> Config:
    """A certificate authority and a signing certificate under it, made here; the settings that name them."""
    authority = SECRETS["es256"]()
    root = _issue("test authority", authority, None, authority)
    secret = SECRETS[kind]()
    leaf = _issue("test signer", secret, root, authority, days)
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (leaf, root)))
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return Config(c2pa_certificate=str(chain), c2pa_key=str(key))


def _issue(
    name: str, secret: Any, issuer: x509.Certificate | None, authority: Any, days: float = 40
) -> x509.Certificate:
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "zturbo tests")]
    )
    now, is_root = datetime.now(UTC), issuer is None
    usage = x509.KeyUsage(not is_root, False, False, False, False, is_root, is_root, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(secret.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    if not is_root:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(authority, hashes.SHA256())


def told(data: bytes, output_format: str) -> dict[str, Any]:
    """What the credentials of a file say, as the library's own reader finds them."""
    with c2pa.Reader(f"image/{output_format}", io.BytesIO(data)) as reader:
        return json.loads(reader.json())


def picture(output_format: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    settings = Settings(prompt="a fox", seed=1, width=64, height=64, steps=8, acceleration="none", model="m",
                        model_version="m@1")  # fmt: skip
    return encode(pixels, output_format, settings)


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_signed_pictures_verify(tmp_path: Path, output_format: str, kind: str) -> None:
    signer = open_signer(certificate(tmp_path, kind))
    assert signer is not None
    plain = picture(output_format)
    signed = signer.sign(plain, output_format)
    found = told(signed, output_format)
    assert found["validation_state"] == "Valid"
    manifest = found["manifests"][found["active_manifest"]]
    (actions,) = [one for one in manifest["assertions"] if one["label"].startswith("c2pa.actions")]
    assert actions["data"]["actions"][0]["digitalSourceType"] == AI_SOURCE
    assert b"a fox" not in json.dumps(found).encode()
    assert len(signed) - len(plain) < 12_000
    before, after = (np.asarray(Image.open(io.BytesIO(data))) for data in (plain, signed))
    assert np.array_equal(before, after)
    assert read_metadata(signed) == read_metadata(plain)


def test_one_changed_byte_shows(tmp_path: Path) -> None:
    signer = open_signer(certificate(tmp_path))
    assert signer is not None
    signed = bytearray(signer.sign(picture("png"), "png"))
    signed[signed.rindex(b"IDAT") + 100] ^= 1
    found = told(bytes(signed), "png")
    assert found["validation_state"] == "Invalid"
    assert any("mismatch" in one["code"] for one in found["validation_status"])


def test_without_a_certificate_nothing_is_signed() -> None:
    assert open_signer(Config()) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda _folder, config: replace(config, c2pa_key=""), "both"),
        (lambda _folder, config: replace(config, c2pa_certificate=""), "both"),
        (lambda folder, config: replace(config, c2pa_key=str(folder / "absent.pem")), "c2pa_key"),
        (lambda _folder, config: replace(config, c2pa_key=config.c2pa_certificate), "cannot sign"),
        (lambda _folder, config: replace(config, c2pa_certificate=config.c2pa_key), "cannot sign"),
    ],
    ids=["no key", "no certificate", "absent", "not a key", "not a certificate"],
)
def test_what_does_not_fit_is_refused_at_the_start(tmp_path: Path, change: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        open_signer(change(tmp_path, certificate(tmp_path)))


def test_a_server_with_such_files_does_not_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = replace(certificate(tmp_path), c2pa_key="", port=0, data_dir=tmp_path / "data")
    with pytest.raises(ConfigError, match="need both"):
        run(config, None)
    assert capfd.readouterr().err == ""


@pytest.mark.anyio
async def test_the_server_signs(tmp_path: Path) -> None:
    engine, config = Instant(), certificate(tmp_path)
    engine.gate.set()
    async with serving(engine, c2pa_certificate=config.c2pa_certificate, c2pa_key=config.c2pa_key) as server:
        (item,) = (await post(server)).json()["data"]
        data = (await server.client.get(item["url"])).content
        assert told(data, "png")["validation_state"] == "Valid"


def test_a_certificate_that_has_expired_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c2pa_certificate: .* expired on 20"):
        open_signer(certificate(tmp_path, days=-0.1))


@pytest.mark.anyio
async def test_nothing_is_drawn_once_the_certificate_has_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, config = Instant(), certificate(tmp_path, days=20.5)
    engine.gate.set()
    async with serving(engine, c2pa_certificate=config.c2pa_certificate, c2pa_key=config.c2pa_key) as server:
        assert "ends in 20 days" in caplog.text
        assert (await server.client.get("/readyz")).status_code == 200
        monkeypatch.setattr(server.service.signer, "_ends", datetime.now(UTC))
        draws = engine.draws
        answer = await post(server)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "invalid_config")
        assert engine.draws == draws
        assert (await server.client.get("/readyz")).status_code == 500
        await server.service.close()
        (row,) = (await server.service.records.history.logs(10)).rows
        assert (row.status, row.credits, row.held) == ("failed", 0, 0)
