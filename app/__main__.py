"""``python -m app``: the ``poolwire`` command."""

from app.cli.main import app

if __name__ == "__main__":
    app(prog_name="poolwire")
