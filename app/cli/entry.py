"""Where the command begins: it imports nothing itself, so that Ctrl-C ends it quietly while the rest is imported."""

import sys


def main() -> None:
    """Run ``poolwire``."""
    try:
        from app.cli.main import app

        app(prog_name="poolwire")
    except KeyboardInterrupt:
        sys.exit(130)
