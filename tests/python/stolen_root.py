"""Takes the root's key out of a control plane's state directory, as whoever holds both the store and its key can: for tests that
make certificates which the real roots have signed and the control plane never would. Prints one JSON.

usage: stolen_root.py STATE_DIR
"""

import base64
import json
import pathlib
import sqlite3
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

state = pathlib.Path(sys.argv[1])
key = AESGCM(base64.b64decode((state / "key").read_text()))
store = sqlite3.connect(state / "store.db", timeout=20)
ident, certificate, sealed = store.execute(
    "SELECT id, certificate, sealed_key FROM ca_keys WHERE role = 'root' AND sealed_key IS NOT NULL"
).fetchone()
plain = key.decrypt(sealed[:12], sealed[12:], f"ca-key/root/{ident}".encode())
print(json.dumps({"certificate": base64.b64encode(certificate).decode(), "key": base64.b64encode(plain).decode()}))
