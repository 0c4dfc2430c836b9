"""``python -m sandai.op.client.cli``."""

from . import main

if __name__ == "__main__":
    main()
