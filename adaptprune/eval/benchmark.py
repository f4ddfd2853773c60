"""What the benchmarks share: where their files are, and a stream of items in which bad ones neither vanish nor stop it.

A task reads its own files in `read`; this class finds them, tells repeated ids apart, cuts the stream to `limit` and to
one chunk of several, and describes the files for the record.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from PIL import Image

from adaptprune.checks import whole
from adaptprune.errors import AdaptPruneError, first_line, reason
from adaptprune.eval.files import Bad, import_pyarrow, need
from adaptprune.eval.metrics.groups import GroupMeans
from adaptprune.eval.task import Item, Tally, Task
from adaptprune.registry import did_you_mean

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
SERVER, JUDGE = "server", "judge"
Record = TypeVar("Record")


@dataclass(frozen=True)
class Split:
    """How many questions there are, and files relative to the benchmark's folder, each with what it is."""

    questions: int
    files: dict[str, str]


class Benchmark(Task):
    """A benchmark that is read from its published files.

    Parameters
    ----------
    data : str or Path
        The folder that holds the benchmark's folder (LLaVA's ``playground/data/eval``), or that folder itself.
    split : str, optional
        One of `splits`; the first is the default.
    limit : int, optional
        Only the first so many questions.
    num_chunks, chunk_idx : int
        Only one of so many equal parts, as LLaVA's scripts cut them: for several machines.

    Raises
    ------
    AdaptPruneError
        A file is missing (it is named), or an option is out of range.
    """

    title: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]  # under the data folder, the first that is there
    metric: ClassVar[str]
    splits: ClassVar[dict[str, Split]]
    parquet: ClassVar[str] = ""  # how the names of the parquet files start, where that layout is read too
    max_new_tokens = 128
    methods = ("adaptprune",)
    keep_ratios = (0.1,)

    def __init__(
        self,
        data: str | Path = ".",
        split: str | None = None,
        limit: int | None = None,
        num_chunks: int = 1,
        chunk_idx: int = 0,
    ) -> None:
        split = split or next(iter(self.splits))
        if split not in self.splits:
            raise AdaptPruneError(f"{self.name} has no split {split!r}.{did_you_mean(split, self.splits)}")
        if limit is not None:
            whole("limit", limit, 1, 2**31)
        whole("num_chunks", num_chunks, 1, 2**20)
        whole("chunk_idx", chunk_idx, 0, num_chunks - 1)
        self.split, self.limit, self.num_chunks, self.chunk_idx = split, limit, num_chunks, chunk_idx
        self.root, self.shards = self._find(Path(data), list(self.splits[split].files))
        self._repeated = 0
        if self.shards:
            import_pyarrow()
        else:
            for name, what in self.splits[split].files.items():
                need(self.root / name, what)

    def _find(self, data: Path, names: list[str]) -> tuple[Path, list[Path]]:
        """The folder that holds any of the files, or else parquet files, which are given, too."""
        own = [data / folder for folder in self.folders]
        for place in (*own, data):
            if any((place / name).exists() for name in names):
                return place, []
        if self.parquet:
            pattern = f"{self.parquet}*.parquet"
            found = [(place, sorted(place.rglob(pattern))) for place in own]
            # the data folder itself may hold other benchmarks
            found.append((data, sorted((*data.glob(pattern), *data.glob(f"data/{pattern}")))))
            for place, shards in found:
                if shards:
                    return place, shards
        return (own[0] if own else data), []

    def path(self, name: str) -> Path:
        return self.root / name

    def files(self) -> list[Path]:
        """What the questions are read from."""
        return self.shards or [self.root / name for name in self.splits[self.split].files]

    def read(self) -> Iterator[Item | Bad]:
        """All questions of the files, in their order."""
        raise NotImplementedError

    def items(self) -> Iterator[Item]:
        items = itertools.islice(self._checked(), self.limit)
        if self.num_chunks == 1:
            return items
        size = math.ceil(sum(1 for _ in items) / self.num_chunks)
        start = size * self.chunk_idx
        return itertools.islice(itertools.islice(self._checked(), self.limit), start, start + size)

    def _checked(self) -> Iterator[Item]:
        """The files' questions; what is bad becomes an item with a problem, an id that was there gets a suffix."""
        seen: set[bytes] = set()
        self._repeated = 0
        for number, found in enumerate(self._records()):
            if isinstance(found, Bad):
                found = bad_item(f"#{number}", f"{found.place} {found.why}")
            name = found.id
            while (key := hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).digest()) in seen:
                name = f"{name}#{number}"
            seen.add(key)
            self._repeated += name != found.id
            yield found if name == found.id else replace(found, id=name)

    def _records(self) -> Iterator[Item | Bad]:
        """What `read` gives; files whose structure it does not expect are an error, not a defect."""
        try:
            yield from self.read()
        except (AdaptPruneError, OSError):
            raise
        except Exception as error:
            names = ", ".join(repr(str(path)) for path in self.files())
            raise AdaptPruneError(
                f"{names}: not in the form that {self.name} has ({reason(error)}): download it again."
            ) from error

    def notes(self) -> list[str]:
        if not self._repeated:
            return []
        many = self._repeated > 1
        return [
            f"{self._repeated} question{'s have ids' if many else ' has an id'} that {'were' if many else 'was'} there "
            "before: told apart as ID#NUMBER"
        ]

    def score(self, item: Item, answer: str) -> float | None:
        return None

    def tally(self) -> Tally | None:
        return None if self.scored_by else _Means(self)

    def groups(self, item: Item) -> tuple[str, ...]:
        """Names under which an item is counted besides the total."""
        return (item.kind,)

    def settings(self) -> dict[str, object]:
        files = {path.name: _fingerprint(path) for path in self.files() if path.is_file()}
        return {
            "split": self.split,
            "limit": self.limit,
            "num_chunks": self.num_chunks,
            "chunk_idx": self.chunk_idx,
            "files": files,
        }


class _Means:
    """The mean of a benchmark's own scores, overall and by group."""

    def __init__(self, task: Benchmark) -> None:
        self._task, self._means = task, GroupMeans()

    def add(self, item: Item, answer: str) -> None:
        score = self._task.score(item, answer)
        assert score is not None
        self._means.add(score, self._task.groups(item))

    def result(self) -> dict[str, float]:
        return self._means.result()


def bad_item(name: str, why: str) -> Item:
    """Stands for a record that cannot be asked."""
    return Item(name, name, _nothing, "", None, "", question_id=name, problem=why)


def _nothing() -> list[Image.Image]:
    return []


def build(
    records: Iterable[tuple[str, Record] | Bad], make: Callable[[str, Record], Item | None]
) -> Iterator[Item | Bad]:
    """What `make` makes of each (place, record); a record that lacks something, or has it in another form, is `Bad`."""
    for found in records:
        if isinstance(found, Bad):
            yield found
            continue
        place, record = found
        try:
            item = make(place, record)
        except KeyError as error:
            yield Bad(place, f"has no {error.args[0]!r}")
        except (TypeError, ValueError, IndexError) as error:
            yield Bad(place, f"cannot be used: {first_line(error)}")
        except Exception as error:
            yield Bad(place, f"cannot be used: {reason(error)}")
        else:
            if item is not None:
                yield item


def text_of(row: Mapping[str, Any], *names: str) -> list[str]:
    """Fields that have to be there and be text (or a whole number)."""
    for name in names:
        if not isinstance(row[name], (str, int)) or isinstance(row[name], bool):
            raise TypeError(f"its {name!r} is a {type(row[name]).__name__}, not text")
    return [str(row[name]) for name in names]


def _fingerprint(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _sha256(file)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sha256(file: Any) -> Any:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(2**20):
        digest.update(block)
    return digest
