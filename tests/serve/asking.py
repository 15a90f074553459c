"""Both clients, called alike."""

import asyncio

import pytest

from tfrec_attn.serve.client import AsyncClient, Client

either = pytest.mark.parametrize("kind", [Client, AsyncClient])
both = pytest.mark.parametrize("protocol", ["grpc", "rest"])


def ask(kind, target, call, model="m", **settings):
    """What `call` gives of an open client; a call that is awaitable is awaited."""
    if kind is Client:
        with Client(target, model, **settings) as client:
            return call(client)

    async def awaited():
        async with AsyncClient(target, model, **settings) as client:
            return await call(client)

    return asyncio.run(awaited())
