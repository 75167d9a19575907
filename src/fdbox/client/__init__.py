"""What a program imports: the same operations, blocking (`sync`) and for asyncio (`aio`)."""
