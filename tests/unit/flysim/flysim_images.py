"""The images that stories run: what a machine of each does is in its name."""

import sys
from typing import Any


def _shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


# No shell: one that is asked to end between its last command and `wait` may sleep on.
POLITE = """
import signal, subprocess

asked = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, asked)
subprocess.Popen(["sleep", "1000"])
print("ready", flush=True)
signal.sigwait(asked)
"""

WEB = """
import asyncio, json, os
from aiohttp import web

healthy = True

async def tell(request):
    global healthy
    if request.path == "/health":
        return web.Response(status=200 if healthy else 500)
    if request.path == "/sick":
        healthy = False
    if request.path == "/broken":
        response = web.StreamResponse(headers={"content-length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        request.transport.abort()
        return response
    if request.path == "/forbidden":
        return web.Response(status=403, text="no")
    if request.path == "/ws":
        socket = web.WebSocketResponse(protocols=["chat"])
        await socket.prepare(request)
        async for message in socket:
            if message.data == "bye":
                await socket.close(code=4001)
            elif message.type == web.WSMsgType.TEXT:
                await socket.send_str(message.data.upper())
            else:
                await socket.send_bytes(message.data[::-1])
        return socket
    told = {"machine": os.environ["SELF"], "method": request.method, "path": request.raw_path,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": (await request.read()).decode()}
    return web.json_response(told, headers={"x-mine": "1", "set-cookie": "a=b"})

async def main():
    runner = web.ServerRunner(web.Server(tell))
    await runner.setup()
    await web.TCPSite(runner, os.environ["BIND"], 8080).start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

IMAGES: dict[str, Any] = {
    "images": {
        "sleeper": {"command": ["sleep", "1000"]},
        "polite": {"command": [sys.executable, "-I", "-S", "-c", POLITE]},
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
        "web": {"command": [sys.executable, "-c", WEB], "env": {"BIND": "{address}", "SELF": "{machine}"}},
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
