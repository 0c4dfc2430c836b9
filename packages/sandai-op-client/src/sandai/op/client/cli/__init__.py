"""
The command ``sandai-op``.

Only this package imports click and rich, which the extra ``sandai-op-client[cli]`` brings.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command and exit; without the extra, say how to install it."""
    try:
        from ._main import run
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.stderr.write("sandai-op needs click and rich: pip install 'sandai-op-client[cli]'\n")
        sys.exit(1)
    sys.exit(run())
