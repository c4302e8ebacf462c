"""What several views of one data set share: batches of the same rows, read, hashed and decoded once
for all of them, and scaled once for those that want the same pixels.

Light: the processes that decode import it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from cache_specs.spec import Preprocess
from extract.images import OK, contents, empty, pictures_of, put
from extract.stream import Batch


@dataclass(frozen=True)
class Unit:
    """Rows that make up a batch of size `batch` of some views; preps: the pixels that these want,
    each once; views: which of them, {view: place in preps}."""

    rows: Sequence[int]
    batch: int
    preps: list[Preprocess]
    views: dict[int, int]


def scaled_by(prep: Preprocess) -> Preprocess:
    """What the pixels depend on: all but mean and deviation, which come after them."""
    return replace(prep, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Units(Dataset):
    """Element i is a list: the batch of unit i (see `extract.images.Batches`) for each of its
    preps."""

    read: Callable[[int], bytes]
    sha256: Sequence[str]
    units: Sequence[Unit]

    @property
    def rows(self) -> list[Sequence[int]]:
        return [unit.rows for unit in self.units]

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> list[Batch]:
        unit = self.units[index]
        found = [empty(unit.batch, prep) for prep in unit.preps]
        for place, row in enumerate(unit.rows):
            data, status = contents(self.read, row, self.sha256[row])
            pictures = [(None, status)] * len(found)
            if status == OK:
                pictures = pictures_of(data, unit.preps)
            for batch, prep, one in zip(found, unit.preps, pictures, strict=True):
                put(batch, place, prep, *one)
        return found


def split(
    units: Sequence[Unit], arrived: Iterable[list[Batch]], views: int
) -> list[Iterator[Batch | None]]:
    """The batches of each view, of units that arrive in order; None where the next unit is not
    this view's, so that no view looks further ahead than the others are."""
    coming = zip(units, arrived, strict=True)
    waiting: list[deque[Batch]] = [deque() for _ in range(views)]

    def batches(view: int) -> Iterator[Batch | None]:
        mine = [number for number, unit in enumerate(units) if view in unit.views]
        for number, after in zip(mine, [*mine[1:], -1], strict=True):
            while not waiting[view]:
                unit, found = next(coming)
                for other, place in unit.views.items():
                    waiting[other].append(found[place])
            yield waiting[view].popleft()
            if after != number + 1:
                yield None

    return [batches(view) for view in range(views)]
