"""Where Google has its endpoints: regions and versions of the API.

What must live here: Google's rules for addresses, pure. What must not: formats, and how a caller proves itself.
"""

import re

_MULTI_REGIONS = ("eu", "us")


def regional(base: str, region: str) -> str:
    """The address of a region, from the one that serves them all."""
    if region == "global":
        return base
    host = base.removeprefix("https://")
    if region in _MULTI_REGIONS:
        return "https://" + host.replace(".googleapis", f".{region}.rep.googleapis", 1)
    return f"https://{region}-{host}"


def versioned(base: str, version: str) -> str:
    """``base`` with the version of the API and a slash behind it; one that has a version keeps it."""
    base = base.rstrip("/")
    return base + "/" if re.search(r"/v\d\w*$", base) else f"{base}/{version}/"
