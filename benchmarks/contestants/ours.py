"""sandai-op-client and sandai-op-aio."""

from sandai.op.aio import create_async_client
from sandai.op.client import create_client

from .job import serve
from .operator_clients import shapes

if __name__ == "__main__":
    serve(shapes(create_client, create_async_client))
