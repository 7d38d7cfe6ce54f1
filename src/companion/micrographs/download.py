"""One file over HTTP, continued where an earlier try broke off."""

from __future__ import annotations

import sys
from pathlib import Path

from companion.errors import CompanionError

TIMEOUT_S = 30  # without a byte arriving
CHUNK = 1 << 16  # bytes; of a chunk that breaks off nothing is kept
PART = ".part"  # suffix of what has arrived of a file, beside where the file will be


def is_file(path: Path, checksum: str) -> bool:
    """Whether `path` is there with that checksum (``algorithm:hexadecimal``)."""
    import pooch

    algorithm, _, digest = checksum.partition(":")
    return path.is_file() and pooch.file_hash(str(path), alg=algorithm) == digest


def download(url: str, checksum: str, target: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Download to `target`, which appears when it is whole and right.

    What has arrived of a file stays in ``<target>.part``; the next try asks for the rest (HTTP Range) and starts from
    the beginning where the server sends all again, or where the two parts do not make the registered file.

    Raises
    ------
    CompanionError
        The file is not the registered one; nothing of it is kept then.
    requests.RequestException, urllib3.exceptions.HTTPError
        It could not be downloaded; what has arrived is kept.
    """
    part = target.with_name(target.name + PART)
    continued = _receive(url, part, timeout_s)
    if continued and not is_file(part, checksum):
        part.unlink()  # of another version of the file, or damaged
        _receive(url, part, timeout_s)
    if not is_file(part, checksum):
        part.unlink()
        raise CompanionError(f"{url} is not the registered file: its {checksum.replace(':', ' should be ')}")
    part.replace(target)


def _receive(url: str, part: Path, timeout_s: float) -> bool:
    """Write what `part` lacks; whether it was continued."""
    import requests
    from tqdm import tqdm

    had = part.stat().st_size if part.is_file() else 0
    # Compressed on the way, the bytes of an answer would not be those of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
    with requests.get(url, headers=headers, stream=True, timeout=timeout_s) as answer:
        if had and answer.status_code == requests.codes.requested_range_not_satisfiable:
            return True  # it is whole, or longer than the file: the checksum says
        answer.raise_for_status()
        continues = answer.status_code == requests.codes.partial_content
        if continues and not answer.headers.get("Content-Range", "").startswith(f"bytes {had}-"):
            raise requests.RequestException(f"asked for bytes from {had}, sent {answer.headers.get('Content-Range')}")
        had = had if continues else 0
        total = had + int(answer.headers.get("Content-Length", 0)) or None
        with (
            open(part, "ab" if continues else "wb") as file,
            tqdm(total=total, initial=had, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar,
        ):
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return continues
