"""The images that stories run: what a machine of each does is in its name."""

import sys
from typing import Any


def _shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


IMAGES: dict[str, Any] = {
    "images": {
        "sleeper": {"command": ["sleep", "1000"]},
        "polite": {"command": _shell("trap 'exit 0' INT TERM; sleep 1000 & echo ready; wait")},
        "stubborn": {"command": _shell("trap '' INT TERM; echo ready; while :; do sleep 1000; done")},
        "quits": {"command": ["true"]},
        "crashes": {"command": _shell("exit 3")},
        "missing": {"command": ["/no/such/program"]},
        "tells": {
            "command": _shell('env; echo "args:$*"; exec sleep 1000'),
            "env": {"DATA_DIR": "{volume}", "BIND": "{address}", "SELF": "{machine}", "PLAIN": "of the image"},
        },
        "family": {
            "command": _shell(
                "sleep 1000 & echo pid $!; setsid sleep 1000 & echo pid $!; env -i setsid sleep 1000 & echo pid $!;"
                " echo ready; wait"
            )
        },
        "listens": {
            "command": [
                sys.executable,
                "-S",
                "-c",
                "import os, socket\n"
                "s = socket.create_server((os.environ['BIND'], 18790))\n"
                "print('ready', flush=True)\n"
                "while True: s.accept()[0].close()",
            ],
            "env": {"BIND": "{address}"},
        },
    }
}
