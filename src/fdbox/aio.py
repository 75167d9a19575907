"""fdbox for asyncio: `client = await fdbox.aio.connect()`."""

from __future__ import annotations

from fdbox.client.aio import Box, Client, Subscription, connect

__all__ = ["Box", "Client", "Subscription", "connect"]
