"""The web page: `python -m model serve --weights released_weights/`, then open the address it prints.

Uploads lie in a temporary folder that goes when the server stops; nothing is fetched from elsewhere.
"""

from model.page.server import PageServer, serve

__all__ = ["PageServer", "serve"]
