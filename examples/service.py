"""A service that survives its own death: it counts its visitors.

The count is memory in a box, and the listening socket is there too. Whoever starts this program
again finds both as they were. Run `fdbox serve` first (or set FDBOX_SOCKET to a running one's socket).
"""

from __future__ import annotations

import os
import socket

import fdbox


def listener(box: fdbox.Box) -> socket.socket:
    """Return the listening socket from the box; the first time, put one in."""
    try:
        return socket.socket(fileno=box.get("listener").detach())
    except fdbox.EntryNotFound:
        new = socket.create_server(("127.0.0.1", 0))
        box.put("listener", new)
        return new


def main() -> None:
    """Serve until killed; say first what was found in the box."""
    with fdbox.connect() as client:
        box = client.box("visitors")
        memory = box.memory("counter", size=4096)
        server = listener(box)
        how = "recovered" if memory.recovered else "new"
        print(how, server.getsockname()[1], flush=True)
        while True:
            visitor, _ = server.accept()
            with visitor:
                count = int.from_bytes(memory[:8], "little") + 1
                memory[:8] = count.to_bytes(8, "little")
                visitor.sendall(f"{count} {os.getpid()}\n".encode())


if __name__ == "__main__":
    main()
