"""A folder of objects by its address: s3://bucket/prefix, gs://…, az://…, or a path. The one door
to obstore, which zarr itself can use.

Who one is comes from the environment, as that library reads it (AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS …); nothing of it is written down. A store that
answers 429 or 5xx, or hangs up, is asked again, later and later, for PATIENCE.
"""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError
from obstore.store import LocalStore, ObjectStore, from_url

from base.errors import UNKNOWN, StorageError, UsageError

EXAMPLES = "A place is s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, or a folder"
# where the library looks for how long one object may take; what the user has said stands
TIMEOUT = {"s3": "AWS_TIMEOUT", "gs": "GOOGLE_TIMEOUT", "az": "AZURE_TIMEOUT"}
ONE = "300 seconds"  # on a slow line
PATIENCE = timedelta(minutes=3)  # with a store that throttles, or hangs up
SECRET = re.compile(r"//[^/@\s]*@")  # what stands before a host
NO_SUCH = re.compile(r"\b501\b|NotImplemented")  # said of a conditional write


class Place:
    """The objects below an address, by their names; `/` parts these as in paths."""

    def __init__(self, address: str, make: bool = False) -> None:
        """make: a folder that is not there. Raises UsageError for what is no address; nothing is
        asked yet."""
        self.folder: Path | None = None
        self.address = address.rstrip("/") or address
        _refuse(self.address)
        with self._failing("open", ""):
            if "://" in address:
                os.environ.setdefault(TIMEOUT[urlsplit(address).scheme], ONE)
                self.store: ObjectStore = from_url(self.address, retry_config=retrying())
                return
            self.folder = Path(os.path.expanduser(self.address)).absolute()
            self.address = str(self.folder)
            if not make and not self.folder.is_dir():
                raise UsageError(f"there is no folder {self.folder}; name another place")
            self.store = LocalStore(self.folder, mkdir=True)

    def put(self, name: str, data: bytes, once: bool = False) -> bool:
        """Write an object, whole or not at all. once: unless it is there; then False. A store that
        knows no such condition is asked before."""
        with self._failing("write", name):
            if not once:
                obstore.put(self.store, name, data, use_multipart=False)
                return True
            try:
                obstore.put(self.store, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            except (NotImplementedError, NotSupportedError):  # obstore's, told of it beforehand
                return self._put_if_none(name, data)
            except BaseError as error:
                if not NO_SUCH.search(str(error)):
                    raise
                return self._put_if_none(name, data)
        return True

    def _put_if_none(self, name: str, data: bytes) -> bool:
        """In two steps: another one may come between."""
        return self.get(name) is None and self.put(name, data)

    def get(self, name: str, size: int | None = None) -> bytes | None:
        """All of an object; None where there is none, or (where that is known) none of this
        size."""
        if self.folder is not None:
            path = self.folder / name
            if path.exists() and not path.is_file():
                return None  # a FIFO would never end
        with self._failing("read", name):
            try:
                found = obstore.get(self.store, name)
                if size not in (None, found.meta["size"]):
                    return None
                return found.bytes().to_bytes()
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
            why = SECRET.sub("//…@", " ".join(str(error).split()))
            raise StorageError(
                f"cannot {how} {self.address}/{name}: {why[:600]}. What has arrived stays; see to "
                "the network, and to who you are (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL "
                "or what the store calls them, in the environment), then type the same command: it "
                "goes on from here"
            ) from error


def retrying() -> Any:
    """As long as PATIENCE lasts, each time twice as late."""
    first, last = timedelta(milliseconds=100), timedelta(seconds=15)
    slower = {"init_backoff": first, "max_backoff": last, "base": 2}
    return {"max_retries": 1000, "retry_timeout": PATIENCE, "backoff": slower}


def _refuse(address: str) -> None:
    """Raise UsageError for what is no address."""
    parts = urlsplit(address)
    if "@" in parts.netloc or ("://" in address and (parts.query or parts.fragment)):
        # not shown: it may hold a secret
        raise UsageError(
            "an address is scheme://bucket/prefix and no more. Put keys and tokens into the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY …), where no history keeps them",
            instead={"TO": UNKNOWN, "FROM": UNKNOWN},
        )
    known = "://" in address and parts.scheme in TIMEOUT and parts.netloc
    if re.match(r"\w+:/", address) and not known:
        raise UsageError(
            f"{address} is no place for views, name another one. {EXAMPLES}",
            instead={"TO": UNKNOWN, "FROM": UNKNOWN},
        )
