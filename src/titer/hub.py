"""The hub, asked once and briefly whether it is there: its libraries take a minute of retries to find out."""

from __future__ import annotations

import functools
import os
import ssl
import sys
import threading
import urllib.error
import urllib.request

PATIENCE = 5.0
"""Seconds to wait for an answer."""


def endpoint() -> str:
    """Return the address of the hub: `$HF_ENDPOINT`, or Hugging Face's."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@functools.cache
def unreachable() -> str | None:
    """Return why the hub cannot be asked, `None` where it can; when it cannot, libraries look into their caches alone.

    Any answer means that it is there, an error too. So does a failed TLS handshake, since the libraries may use other
    certificates.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    found: list[str | None] = []

    def ask() -> None:
        request = urllib.request.Request(endpoint(), method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=PATIENCE).close()
        except urllib.error.HTTPError:
            found.append(None)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            found.append(None if isinstance(reason, ssl.SSLError) else str(reason))
        else:
            found.append(None)

    # A thread, for no time limit counts while a name is looked up.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    why = found[0] if found else f"no answer in {PATIENCE:g} s"
    if why is not None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries that are not imported yet
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return why


def excuse() -> str:
    """Return, for an error, that the hub could not be asked and why; nothing where it could."""
    why = unreachable()
    return (
        "" if why is None else f" The hub at {endpoint()} could not be asked ({why}), and the cache does not hold it."
    )


WAYS = (
    "HF_ENDPOINT names another hub; with HF_HUB_OFFLINE=1 none is asked, and what is in the cache of the Hugging Face "
    "libraries is taken."
)
"""The part of a hint that tells how the hub is chosen."""
