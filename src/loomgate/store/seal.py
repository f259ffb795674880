"""Sealing: how a secret (a provider's key) lies in the database, and where the key that seals it is kept.

What must live here: the sealed form and the key file. What must not: which secrets are stored, or SQL. API keys of
clients are not sealed but hashed, elsewhere: nobody needs them back.

The sealed form is one version byte, a random nonce of 12 bytes, and AES-256-GCM's ciphertext with its tag. The
version byte and the context are authenticated, so a sealed secret moved to another row does not open there.
"""

import hmac
import os
from pathlib import Path

from loomgate.errors import StoreError
from loomgate.settings import decode_seal_key

KEY_FILE = "seal.key"
_VERSION = b"\x01"
_NONCE = 12


class Sealer:
    """Seals and opens short texts with one key of 32 bytes; safe to share between threads."""

    def __init__(self, key: bytes) -> None:
        """Takes the key that `load_key` gives; raises ValueError unless it has 32 bytes."""
        # Imported here: the library takes longer to load than most commands take to run.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if len(key) != 32:
            raise ValueError("a seal key has 32 bytes")
        self._cipher = AESGCM(key)
        self._mark = hmac.digest(key, b"loomgate: key for marks", "sha256")
        self._key = key

    @property
    def mark(self) -> bytes:
        """A key of its own, derived from the sealing key, for digests by which equal secrets are recognised."""
        return self._mark

    def seal(self, plain: str, *, context: str) -> bytes:
        """``plain`` sealed. ``context`` says whose secret it is (kind and id) and is needed again to open it."""
        return self.seal_bytes(plain.encode(), context=context)

    def seal_bytes(self, plain: bytes, *, context: str) -> bytes:
        """As `seal`, of bytes. For what is sealed very often, take a `derived` key each: one key is good for 2**32."""
        nonce = os.urandom(_NONCE)
        return _VERSION + nonce + self._cipher.encrypt(nonce, plain, _VERSION + context.encode())

    def derived(self, purpose: str) -> "Sealer":
        """A sealer with a key of its own for ``purpose``, always the same."""
        return Sealer(hmac.digest(self._key, b"loomgate: key for " + purpose.encode(), "sha256"))

    def open(self, sealed: bytes, *, context: str) -> str:
        """The text that `seal` was given. Raises `StoreError` for another key, another context, or damage."""
        plain = self.open_bytes(sealed, context=context)
        try:
            return plain.decode()
        except UnicodeDecodeError:
            raise StoreError(f"the sealed secret of {context} is no text") from None

    def open_bytes(self, sealed: bytes, *, context: str) -> bytes:
        """The bytes that `seal_bytes` was given. Raises as `open` does."""
        from cryptography.exceptions import InvalidTag

        if sealed[:1] != _VERSION:
            raise StoreError(f"the sealed secret of {context} has a form that this version does not know")
        nonce, body = sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :]
        try:
            return self._cipher.decrypt(nonce, body, _VERSION + context.encode())
        except (InvalidTag, ValueError):
            raise StoreError(
                f"the sealed secret of {context} does not open: it was sealed with another key than the present"
                f" seal_key or {KEY_FILE}, or it is damaged"
            ) from None


def load_key(settings_key: str, data: Path) -> bytes:
    """The 32 bytes to seal with: the setting ``seal_key`` if given, else the file ``seal.key`` in folder ``data``.

    The file is made on first use, readable by its owner alone; processes that start at once agree on one key.
    Raises `SettingError` for a bad setting and `StoreError` for a file that cannot be read, written or understood.
    """
    if settings_key:
        return decode_seal_key(settings_key)
    path = data / KEY_FILE
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _create(path)
        text = path.read_text("ascii").strip()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; set seal_key to keep the seal key elsewhere") from None
    except UnicodeDecodeError:
        text = ""
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise StoreError(f"{path}: not a seal key (64 hex digits); restore the file, or the stored secrets are lost")
    return bytes.fromhex(text)


def _create(path: Path) -> None:
    """Puts a new key at ``path``, whole and on disk, unless another process was first.

    Written under another name and then linked: a link appears at once with its content, and fails if the name is taken.
    """
    draft = path.with_name(f".{KEY_FILE}.{os.getpid()}.{os.urandom(4).hex()}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(file, "w") as out:
            out.write(os.urandom(32).hex() + "\n")
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder, and needs no fsync of it.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
