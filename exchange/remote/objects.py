"""A folder of objects by its address: s3://bucket/prefix, gs://…, az://…, or a path. The one door
to obstore, which zarr itself can use.

Who one is comes from the environment, as that library reads it (AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS …); nothing of it is written down. A store that
answers 429 or 5xx, or not at all, is asked again, later and later.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from base.errors import StorageError, UsageError

EXAMPLES = "A place is s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, or a folder"
SCHEMES = ("s3", "gs", "az")
PATIENCE = timedelta(minutes=3)  # with a store that throttles, or does not answer


class Place:
    """The objects below an address, by their names; `/` parts these as in paths."""

    def __init__(self, address: str) -> None:
        """Raises UsageError for what is no address. Nothing is asked yet."""
        self.address = address.rstrip("/") or address
        self.store = _store(self.address)

    def put(self, name: str, data: bytes, once: bool = False) -> bool:
        """Write an object, whole or not at all. once: unless it is there; then False."""
        with self._failing("write", name):
            try:
                mode = "create" if once else "overwrite"
                obstore.put(self.store, name, data, mode=mode, use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def get(self, name: str) -> bytes | None:
        """All of an object; None where there is none."""
        with self._failing("read", name):
            try:
                return obstore.get(self.store, name).bytes().to_bytes()
            except FileNotFoundError:
                return None

    def sizes(self, below: str) -> dict[str, int]:
        """Bytes of each object below a folder, by its whole name."""
        found = {}
        with self._failing("list", below):
            for part in obstore.list(self.store, f"{below}/"):
                found |= {one["path"]: one["size"] for one in part}
        return found

    def inside(self, folder: str = "") -> tuple[list[str], list[str]]:
        """What lies directly in a folder: the names of folders, and of objects."""
        with self._failing("list", folder or "."):
            found = obstore.list_with_delimiter(self.store, f"{folder}/" if folder else None)
        folders = sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])
        return folders, sorted(one["path"].rpartition("/")[2] for one in found["objects"])

    @contextmanager
    def _failing(self, how: str, name: str) -> Generator[None]:
        """Raise StorageError for what the store says, or does not."""
        try:
            yield
        except (BaseError, OSError) as error:
            why = " ".join(str(error).split())
            raise StorageError(
                f"cannot {how} {self.address}/{name}: {why[:600]}. What has arrived stays; see to "
                "the network, and to who you are (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL "
                "or what the store calls them, in the environment), then type the same command: it "
                "goes on from here"
            ) from error


def _store(address: str) -> ObjectStore:
    """obstore's. Raises UsageError."""
    if "://" not in address:
        return LocalStore(Path(os.path.expanduser(address)).absolute(), mkdir=True)
    parts = urlsplit(address)
    if "@" in parts.netloc or parts.query or parts.fragment:
        # not shown: it may hold a secret
        raise UsageError(
            "an address is scheme://bucket/prefix and no more. Put keys and tokens into the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY …), where no history keeps them"
        )
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise UsageError(f"{address} is no place for views, name another one. {EXAMPLES}")
    return from_url(address, retry_config={"max_retries": 10, "retry_timeout": PATIENCE})
