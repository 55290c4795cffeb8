# SPDX-License-Identifier: Apache-2.0
"""Connections of the cases, for both ends at once: what swanctl.conf would say, sent by vici."""

import contextlib

from lab.checks import eventually

from .two_sites import GATEWAY, PEER
from .vici import Refused

SECRET = "of the cases that load their connections by vici"
ESP = "aes128gcm16-x25519"
IDS = ("gateway.example", "peer.example")


def child(network=0, **more):
    """A child of the gateway; the peer's is turned round. start_action is the gateway's alone."""
    return {"local_ts": [f"10.1.{network}.0/24"], "remote_ts": [f"10.2.{network}.0/24"],
            "esp_proposals": [ESP], **more}


PEER_OWN = {"start_action", "dpd_action", "close_action", "rekey_time", "rekey_bytes", "rekey_packets",
            "life_time", "life_bytes", "life_packets", "rand_time", "rand_bytes", "rand_packets",
            "hw_offload"}


def _turned(c):
    turned = {k: v for k, v in c.items() if k not in PEER_OWN}
    turned["local_ts"], turned["remote_ts"] = c["remote_ts"], c["local_ts"]
    return turned


@contextlib.contextmanager
def connection(sites, name, children, peer=None, auth="psk", **ike):
    """Loaded at both ends while the block runs; afterwards nothing of it is left. `peer`: what is
    different there."""
    gateway, other = sites.gateway_ike, sites.peer_ike
    for c in (gateway, other):
        if auth == "psk":
            c.psk(IDS, SECRET)
    common = {"version": "2", "proposals": ["aes128gcm16-prfsha256-x25519"], **ike}
    ends = (GATEWAY, PEER)
    for c, near, mine in ((gateway, 0, children),
                          (other, 1, {k: _turned(v) for k, v in children.items()})):
        connection = {"local_addrs": [ends[near]], "remote_addrs": [ends[1 - near]],
                      **common, "children": mine, **(peer or {} if near else {}),
                      "local": {"auth": auth, "id": IDS[near]},
                      "remote": {"auth": auth, "id": IDS[1 - near]}}
        if auth == "pubkey":
            connection["local"]["certs"] = [sites.certificates[near]]
        c.load(name, connection)
    try:
        yield
    finally:
        for c in (gateway, other):
            c.unload(name)
        for c in (gateway, other):
            with contextlib.suppress(Refused):
                c.terminate(ike=name, force="yes", seconds=20, check=False)
            eventually(lambda c=c: name not in [of for of, _ in c.sas()],
                       f"the IKE SA {name} does not end at {c.ns.name}", 60)
