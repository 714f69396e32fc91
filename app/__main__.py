"""``python -m app``: the ``poolwire`` command."""

from app.cli.entry import main

if __name__ == "__main__":
    main()
