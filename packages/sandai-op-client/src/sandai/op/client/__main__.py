"""``python -m sandai.op.client``: the command ``sandai-op``."""

from .cli import main

if __name__ == "__main__":
    main()
