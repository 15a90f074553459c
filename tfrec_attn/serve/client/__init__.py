"""The Python client of a served model, over gRPC or REST. It imports no TensorFlow.

with Client("localhost:8500", model="movielens") as client:
    for item in client.recommend("42", history=["50", "172"], k=5).items:
        print(item.score, item.id, item.text)
"""

from tfrec_attn.serve.client.answers import (
    Contributions,
    ItemEmbedding,
    Recommendation,
    Recommendations,
    Score,
    Scores,
    Token,
    UserEmbedding,
)
from tfrec_attn.serve.client.clients import AsyncClient, Client
from tfrec_attn.serve.client.connections import Tls
from tfrec_attn.serve.client.retries import ServerError
from tfrec_attn.serve.signatures import Metadata, Signature, TensorSpec

__all__ = [
    "AsyncClient",
    "Client",
    "Contributions",
    "ItemEmbedding",
    "Metadata",
    "Recommendation",
    "Recommendations",
    "Score",
    "Scores",
    "ServerError",
    "Signature",
    "TensorSpec",
    "Tls",
    "Token",
    "UserEmbedding",
]
