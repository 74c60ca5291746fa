"""Asks the SPIFFE Workload API with the client of the Python package index, which nobody here wrote, and prints one JSON a line.

usage: workload.py svid | rotations N | jwt AUDIENCE | bytes PATH
The socket is named by SPIFFE_ENDPOINT_SOCKET, as `outrider run` sets it.
"""

import json
import queue
import socket
import sys

from cryptography.hazmat.primitives import serialization


def say(**what):
    print(json.dumps(what), flush=True)


def serial(context_or_svid):
    return format(context_or_svid.leaf.serial_number, "x")


def key_fits(svid):
    own = svid.private_key.public_key()
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return own.public_bytes(encoding, form) == svid.leaf.public_key().public_bytes(encoding, form)


def svid(client):
    one = client.fetch_x509_svid()
    bundles = client.fetch_x509_bundles()
    bundle = bundles.get_bundle_for_trust_domain(one.spiffe_id.trust_domain)
    say(id=str(one.spiffe_id), serial=serial(one), fits=key_fits(one), chain=len(one.cert_chain), roots=len(bundle.x509_authorities))


def rotations(client, wanted):
    seen = queue.Queue()
    client.stream_x509_contexts(seen.put, seen.put)
    serials = []
    while len(serials) < wanted:
        context = seen.get(timeout=60)
        if isinstance(context, Exception):
            raise context
        one = context.default_svid
        if serial(one) not in serials:
            serials.append(serial(one))
            say(id=str(one.spiffe_id), serial=serial(one), fits=key_fits(one))


def jwt(client, audience):
    from spiffe import JwtSvid

    token = client.fetch_jwt_svid(audience={audience})
    bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(token.spiffe_id.trust_domain)
    mine = JwtSvid.parse_and_validate(token.token, bundle, {audience})
    theirs = client.validate_jwt_svid(token.token, audience)
    refused = []
    head, claims, signature = token.token.split(".")
    flipped = claims[:-1] + ("A" if claims[-1] != "A" else "B")
    for bad, whom in [(f"{head}.{flipped}.{signature}", audience), (token.token, "somebody-else"), (f"{head}.{claims}.", audience)]:
        try:
            client.validate_jwt_svid(bad, whom)
            refused.append(False)
        except Exception:
            refused.append(True)
    say(id=str(mine.spiffe_id), same=str(theirs.spiffe_id) == str(mine.spiffe_id), audience=sorted(mine.audience), refused=refused, token=token.token)


def bytes_from(path):
    """What a bare connection hears: how the socket treats a user."""
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(20)
        try:
            plain.connect(path)
            plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            say(heard=len(plain.recv(64)))
        except OSError as error:
            say(heard=0, error=str(error))


def main():
    verb = sys.argv[1]
    if verb == "bytes":
        return bytes_from(sys.argv[2])
    from spiffe import WorkloadApiClient

    with WorkloadApiClient() as client:
        if verb == "svid":
            svid(client)
        elif verb == "rotations":
            rotations(client, int(sys.argv[2]))
        elif verb == "jwt":
            jwt(client, sys.argv[2])


main()
