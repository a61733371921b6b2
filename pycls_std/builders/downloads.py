"""Download weight files over https, verify their SHA-256, and write them atomically."""

import hashlib
import http.client
import logging
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from torch.hub import get_dir

from pycls_std.core.regular import refuse_irregular
from pycls_std.engine import files

LOG = logging.getLogger("pycls_std")
PATIENCE = 60  # seconds without data until a time-out
CHUNK = 2**20  # bytes per read


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https alone."""

    def redirect_request(self, request, file, code, message, headers, url):
        if urlsplit(url).scheme != "https":
            raise urllib.error.URLError(f"it leads on to {url}, only https:// is downloaded from")
        return super().redirect_request(request, file, code, message, headers, url)


OPENER = urllib.request.build_opener(_OnlyHttps)


class _Address(NamedTuple):
    url: str  # without its hash
    file_name: str  # of the local copy
    digest: str  # the first digits of its SHA-256, hexadecimal


def expected(url: str) -> _Address:
    """Return the parts of a URL; nothing is downloaded.

    Raises ValueError for a missing or malformed hash, and if the URL is not https.
    """
    address, _, fragment = url.partition("#")
    if urlsplit(address).scheme != "https":
        raise ValueError(f"{url}: only https:// is downloaded from")
    file_name = address.rsplit("/", 1)[-1]
    in_name = re.search(r"-([0-9a-f]{8,64})\.\w+$", file_name)
    if fragment:
        digest = fragment.removeprefix("sha256=").lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"{url}: expected #sha256=<64 hexadecimal digits>, got #{fragment}")
        file_name = f"{digest[:8]}-{file_name}"  # other files may have this name too
    else:
        digest = in_name[1] if in_name else ""
    if not digest:
        raise ValueError(f"{url}: needs its SHA-256, as #sha256=<hex> or 8 digits of it or more in the file's name")
    return _Address(address, file_name, digest)


def download(url: str) -> Path:
    """Return the local copy of a file, downloaded into torch.hub's folder once and verified by its SHA-256.

    The hash is the URL's fragment #sha256=<hex> of 64 digits; or, as for torch.hub, at least 8 digits at the end of the
    file name's stem, whose number is logged.
    Raises ValueError if there is no hash, if the URL or a redirect is not https, and if the download fails or is
    incomplete.
    """
    address, file_name, digest = expected(url)
    target = Path(get_dir()) / "checkpoints" / file_name
    if not target.exists():
        try:
            _fetch(address, target, digest)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise ValueError(f"{address} could not be downloaded ({error}); put it at {target} by hand") from error
    refuse_irregular(target)
    with target.open("rb") as file:  # a file put there by hand is checked too
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digest):
        raise ValueError(f"{target} has the SHA-256 {found}, {url} expects {digest}; delete it")
    if len(digest) < 64:
        LOG.info("%s: checked by the %d digits of its SHA-256 that its name has", target, len(digest))
    return target


def _fetch(address: str, target: Path, digest: str) -> None:
    """Download an address to a file. Raises OSError if this fails or is incomplete, and for another hash."""
    with OPENER.open(address, timeout=PATIENCE) as response:
        length, found, size = response.headers.get("Content-Length"), hashlib.sha256(), 0
        file = files.Growing(target)
        try:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                found.update(chunk)
                size += len(chunk)
            if length and str(size) != length.strip():
                raise OSError(f"{size} of {length} bytes came")
            if not found.hexdigest().startswith(digest):
                raise OSError(f"it has the SHA-256 {found.hexdigest()}, expected {digest}")
            file.finish()
        finally:
            file.abandon()
