"""Fetches what a URL names, inside a sandbox: `download.py URL FILE [NAME: VALUE]…`, for http and https alone.

A program of its own, as `launcher.py` is. The engine does not fetch for a pipeline what the pipeline's own steps might
not reach: it may stand in another network than they do.
"""

from __future__ import annotations

import shutil
import sys
import urllib.request
from collections.abc import Sequence

SILENCE_SECONDS = 60.0


def main(arguments: Sequence[str]) -> str | None:
    """Why it failed."""
    url, file_name, *headers = arguments
    if not url.lower().startswith(("http://", "https://")):
        return "only http and https URLs are known"
    try:
        request = urllib.request.Request(url, headers=dict(each.split(": ", 1) for each in headers))  # noqa: S310
        answer = urllib.request.urlopen(request, timeout=SILENCE_SECONDS)  # noqa: S310 - the scheme is looked at above
        with answer, open(file_name, "wb") as file:
            shutil.copyfileobj(answer, file)
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
