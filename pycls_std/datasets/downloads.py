"""What surrounds a download by torchvision: patience, and one line that says what to do where it fails."""

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
    """Let torchvision download and unpack a dataset in the block.

    files: that are downloaded, in one folder, and their MD5. unpacked: files that it reads, and writes if they are not
    there.
    Raises ValueError in one line that says what to put where if the block fails; what is left of a file that was not
    there before is removed, and so are empty folders. Raises OSError for what is no regular file.
    """
    for path in (*files, *unpacked):
        if path.exists():
            refuse_irregular(path)  # torchvision takes a pipe for an absent file, and writes to it for ever
    folder = next(iter(files)).parent
    new = [path for path in files if not path.exists()]
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with patience():
            yield
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        for path in new:
            if not check_integrity(str(path), files[path]):
                path.unlink(missing_ok=True)  # torchvision writes to its final name, and this is half of it
        for each in made:
            with suppress(OSError):  # it holds what has come, or was not made
                each.rmdir()
        parts = ", ".join(f"{path.name} (MD5 {md5})" for path, md5 in files.items())
        raise ValueError(
            f"{name}: DATA.ROOT {root} has no whole copy and {url} could not be downloaded ({error}); "
            f"put {parts} into {folder} by hand"
        ) from error
