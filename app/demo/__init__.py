"""Ask this folder: index its text and source files and answer questions about them, with every connection injected."""

from app.demo.container import demo_container
from app.demo.demo import Demo, DemoSettings, DemoStopped
from app.demo.folder import Found, Reason, Skipped, walk
from app.demo.place import default_folder, index_file

__all__ = [
    "Demo",
    "DemoSettings",
    "DemoStopped",
    "Found",
    "Reason",
    "Skipped",
    "default_folder",
    "demo_container",
    "index_file",
    "walk",
]
