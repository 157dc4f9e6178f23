"""What runs in a machine of the process faults: it fetches its bundle and sends heartbeats, and is nothing else.

    python -S -I process_machine.py

A supervisor costs half a second of CPU at every boot; this costs 20 ms, so that hundreds of boots say something about
the operator and not about the computer. AGENTSHIELD_API_URL, then SECOND_ENDPOINT (host:port), stand for the Service in
front of all replicas: the first that answers is asked.
"""

import json
import os
import signal
import socket
import sys
import time

BEAT_SECONDS = 0.5
PATIENCE_SECONDS = 1.0


def ask(method: str, path: str, body: bytes = b"", known: str = "") -> tuple[int, bytes]:
    """Status and body of the first endpoint's answer; (0, b"") when none answers."""
    env = os.environ
    head = [f"{method} {path} HTTP/1.0", f"X-Heartbeat-Token: {env['AS_HEARTBEAT_TOKEN']}"]
    head += [f'If-None-Match: "{known}"'] if known else []
    head += [f"X-Machine-Id: {env['FLY_MACHINE_ID']}", f"Content-Length: {len(body)}", "Host: roost", "", ""]
    for endpoint in (env["AGENTSHIELD_API_URL"].removeprefix("http://"), env["SECOND_ENDPOINT"]):
        host, _, port = endpoint.partition(":")
        try:
            with socket.create_connection((host, int(port)), PATIENCE_SECONDS) as connection:
                connection.sendall("\r\n".join(head).encode() + body)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]
        except (OSError, IndexError, ValueError):
            continue
    return 0, b""


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    did, began, revision = os.environ["AGENT_DID"], time.monotonic(), ""
    while True:
        status, body = ask("GET", f"/v1/agents/{did}/config-bundle", known=revision)
        if status == 200:
            revision = json.loads(body)["revision"]
        beat = {
            "status": "running",
            "machineId": os.environ["FLY_MACHINE_ID"],
            "machineVersion": os.environ["FLY_MACHINE_VERSION"],
            "uptimeSeconds": int(time.monotonic() - began),
            "memoryMb": 1,
            "computeVersion": "0.1.0",
            "bundleRevision": revision,
            "bootPhase": "done",
            "ready": True,
        }
        if revision:
            ask("POST", f"/v1/agents/{did}/heartbeat", json.dumps(beat).encode())
        time.sleep(BEAT_SECONDS if revision else 0.1)


if __name__ == "__main__":
    main()
