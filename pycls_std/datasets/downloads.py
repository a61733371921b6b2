"""Downloads by torchvision: with timeouts, cleanup, and a one-line error that says what to do."""

import http.client
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torchvision.datasets.utils import check_integrity

from pycls_std.core.network import patience
from pycls_std.core.regular import refuse_irregular


@contextmanager
def downloading(
    name: str, root: str, url: str, files: dict[Path, str], *, unpacked: Iterable[Path] = ()
) -> Iterator[None]:
    """Context in which torchvision downloads and unpacks a dataset.

    files: downloaded files, in one folder, and their MD5. unpacked: files that it reads, and writes if they are
    missing.
    Raises ValueError of one line that says which files to put where if the block fails; incomplete new files and empty
    new folders are removed. Raises OSError for a path that is not a regular file.
    """
    for path in (*files, *unpacked):
        if path.exists():
            refuse_irregular(path)  # torchvision takes a pipe for a missing file, and blocks writing to it
    folder = next(iter(files)).parent
    new = [path for path in files if not path.exists()]
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with patience():
            yield
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        for path in new:
            if not check_integrity(str(path), files[path]):
                path.unlink(missing_ok=True)  # torchvision writes to the final name, so this is incomplete
        for each in made:
            with suppress(OSError):  # it is not empty, or does not exist
                each.rmdir()
        parts = ", ".join(f"{path.name} (MD5 {md5})" for path, md5 in files.items())
        raise ValueError(
            f"{name}: DATA.ROOT {root} has no whole copy and {url} could not be downloaded ({error}); "
            f"put {parts} into {folder} by hand"
        ) from error
