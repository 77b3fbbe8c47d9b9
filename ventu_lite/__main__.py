"""``python -m ventu_lite``."""

import sys


def main() -> None:
    """Run the command line and exit."""
    if sys.argv[1:2] == ["batching"]:  # it has no app, so it starts without Flask
        from .batching.command import batching

        batching.main(args=sys.argv[2:], prog_name="python -m ventu_lite batching")
    else:
        from .cli import main

        main()


if __name__ == "__main__":
    main()
