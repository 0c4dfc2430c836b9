"""sandai-operator-client, in the environment that has it and not ours."""

from sandai.operator_client import create_async_client, create_client

from .job import serve
from .operator_clients import shapes

if __name__ == "__main__":
    serve(shapes(create_client, create_async_client))
