"""Closing that may take long: a socket that lingers, a file whose file system (FUSE) belongs to somebody."""

from __future__ import annotations

import contextlib
import queue
import threading

from fdbox.linux.fd import OwnedFd

_LANES = 4


class Closer:
    """Closes descriptors in threads of its own, which do nothing else and end with the process.

    What close(2) says (EIO of a file system that writes late) is for whoever wrote, not for who only held.
    """

    def __init__(self) -> None:
        """Begin without a thread."""
        self._queue: queue.SimpleQueue[OwnedFd] = queue.SimpleQueue()
        self._lanes: list[threading.Thread] = []

    def close(self, fd: OwnedFd) -> None:
        """Close a descriptor soon; it is no longer its owner's."""
        if not self._lanes:
            self._lanes = [threading.Thread(target=self._run, daemon=True) for _ in range(_LANES)]
            for lane in self._lanes:
                lane.start()
        self._queue.put(OwnedFd(fd.detach()))

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                self._queue.get().close()
