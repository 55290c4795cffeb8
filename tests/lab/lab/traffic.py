# SPDX-License-Identifier: Apache-2.0
"""Traffic between the hosts of the lab."""

import json
import re
import subprocess
import time

from . import netns


def ping(ns, source, destination, count=5, interval=0.1, size=56):
    """How many of `count` echo requests were answered."""
    output = ns.sh("ping", "-n", "-q", "-c", count, "-i", interval, "-W", 2, "-s", size,
                   "-I", source, destination, check=False, timeout=count * (interval + 2) + 10)
    found = re.search(r"(\d+) received", output)
    if not found:
        raise netns.CommandFailed(output)
    return int(found.group(1))


def tcp(client_ns, client, server_ns, server, seconds=3, rate="20M", reverse=False):
    """One iperf3 TCP stream: (bytes received, bits per second, retransmissions)."""
    listener = server_ns.start("iperf3", "-s", "-1", "-B", server, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        _wait_listening(server_ns, 5201)
        output = client_ns.sh("iperf3", "-c", server, "-B", client, "-t", seconds, "-b", rate,
                              "-J", "--connect-timeout", 3000, *(["-R"] if reverse else []),
                              timeout=seconds + 20, check=False)
        result = json.loads(output)
        if "error" in result:
            raise netns.CommandFailed(f"iperf3: {result['error']}")
        end = result["end"]
        return (end["sum_received"]["bytes"], end["sum_received"]["bits_per_second"],
                end["sum_sent"].get("retransmits", 0))
    finally:
        if listener.poll() is None:
            listener.terminate()
        listener.wait(5)


def _wait_listening(ns, port, seconds=5):
    deadline = time.monotonic() + seconds
    while f":{port} " not in ns.sh("ss", "-ltn"):
        if time.monotonic() > deadline:
            raise netns.CommandFailed(f"nothing listens on port {port}")
        time.sleep(0.05)
