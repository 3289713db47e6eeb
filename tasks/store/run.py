"""The run directory: where everything of one run lies, who may write to it, and what it was made from.

RUN/run.json  manifest.parquet  rejects.parquet  shards/  scores/  SHA256SUMS  tables/  flags.parquet  evidence.json
    report.html
    verdict.json, junit.xml, where the gate decided; hygiene.json, where that was the nightly flow
    summary.html, report-redacted.html, summary-redacted.html, compare.html, where those were asked for
    calibration.json, calibration.parquet, where there are controls to calibrate against
    samples/  matches/  reproductions/  false-copies/  extraction.json, where images were generated
    validity/, some images scored again, unless that was turned off
    sweep/  sweep.html, where parameters were studied
    matches-before/  cleaned.json, where the model was trained on a cleaned set
    side/  side.json, where images were generated under surrogate conditions
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentprint.tasks.store.containment import OutsideError, inside
from latentprint.tasks.store.credentials import redacted
from latentprint.tasks.store.files import read_json, write_json
from latentprint.tasks.store.ownership import RunError, held, require_local
from latentprint.tasks.store.splits import holdout_source, split_of

__all__ = ["SCHEMA_VERSION", "RunDirectory", "RunError", "difference"]

SCHEMA_VERSION = 1
"""Of a run's files, ``schema_version`` in ``run.json``; runs without it are older. It rises when older code would
misread new files."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths within one run."""

    path: Path

    def __post_init__(self) -> None:
        """Raises RunError where the path is a URL."""
        require_local(self.path)

    @property
    def remote(self) -> Path:
        """In the local copy of a run in a store: its URL, and which versions of its files both have."""
        return self.path / ".remote.json"

    @property
    def location(self) -> str:
        """As its user names it: the URL where this is the local copy of a run in a store, else the path."""
        try:
            return redacted(str(read_json(self.remote).get("url", self.path)))
        except (OSError, ValueError):  # there is none, or what a foreign run has of this name
            return redacted(str(self.path))

    @property
    def place(self) -> str:
        """The same, to be recorded: a path means the same in every folder."""
        location = self.location
        return location if "://" in location else redacted(str(self.path.resolve()))

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.parquet"

    @property
    def rejects(self) -> Path:
        return self.path / "rejects.parquet"

    @property
    def checksums(self) -> Path:
        return self.path / "SHA256SUMS"

    @property
    def shards(self) -> Path:
        return self.path / "shards"

    @property
    def scores(self) -> Path:
        return self.path / "scores"

    @property
    def calibration(self) -> Path:
        """What was calibrated, and from what."""
        return self.path / "calibration.json"

    @property
    def calibration_images(self) -> Path:
        """The images that it was calibrated on, and their scores from each timestep."""
        return self.path / "calibration.parquet"

    @property
    def calibration_parts(self) -> Path:
        """The same shard by shard, there while it is being measured."""
        return self.path / "calibration"

    @property
    def calibration_plan(self) -> Path:
        """Which images are to be measured, and their folds."""
        return self.calibration_parts / "plan.parquet"

    def calibration_part(self, shard: str) -> Path:
        """What was measured of the calibration images of a shard."""
        return self._part(self.calibration_parts, shard)

    @property
    def sweep(self) -> Path:
        """The parameter study: a part a setting."""
        return self.path / "sweep"

    @property
    def sweep_page(self) -> Path:
        return self.path / "sweep.html"

    @property
    def validity(self) -> Path:
        """Some images scored again under other settings: a part a setting."""
        return self.path / "validity"

    @property
    def reusable(self) -> Path:
        """Scores taken from another run, there while this one is being scored."""
        return self.path / "reusable.parquet"

    @property
    def tables(self) -> Path:
        return self.path / "tables"

    @property
    def evidence(self) -> Path:
        return self.path / "evidence.json"

    @property
    def flags(self) -> Path:
        """The calibrated flag of each training image, beside the evidence."""
        return self.path / "flags.parquet"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def page(self, name: str, redact: bool = False) -> Path:
        """``report`` or ``summary``, its first page alone; redacted: without pictures, names and folders."""
        return self.path / f"{name}{'-redacted' if redact else ''}.html"

    @property
    def comparison(self) -> Path:
        """This run beside an earlier one."""
        return self.path / "compare.html"

    @property
    def samples(self) -> Path:
        """Generated images, ``samples-000000.tar`` ..."""
        return self.path / "samples"

    @property
    def matches(self) -> Path:
        return self.path / "matches"

    @property
    def reproductions(self) -> Path:
        return self.path / "reproductions"

    @property
    def false_copies(self) -> Path:
        """Images that cannot be copies, matched by the same rules: a part a kind of control."""
        return self.path / "false-copies"

    @property
    def extraction(self) -> Path:
        """What came of generating and matching; written last."""
        return self.path / "extraction.json"

    @property
    def verdict(self) -> Path:
        return self.path / "verdict.json"

    @property
    def junit(self) -> Path:
        return self.path / "junit.xml"

    @property
    def hygiene(self) -> Path:
        """What the nightly flow says of this run."""
        return self.path / "hygiene.json"

    @property
    def odds(self) -> Path:
        return self.path / "odds.parquet"

    @property
    def side(self) -> Path:
        """Samples under surrogate conditions: a part a scale."""
        return self.path / "side"

    @property
    def side_summary(self) -> Path:
        """What came of them; written last."""
        return self.path / "side.json"

    @property
    def cleaned(self) -> Path:
        """What a run of a model trained on a cleaned set says beside the run before; written last."""
        return self.path / "cleaned.json"

    @property
    def cleaned_matches(self) -> Path:
        """Its generated images matched to the training images of that run."""
        return self.path / "matches-before"

    def split_manifest(self, source: str) -> Path:
        """Manifest rows of one source, there while the sources are being joined."""
        return self.shards / f"{source}.manifest.parquet"

    def split_rejects(self, source: str) -> Path:
        """Rejects of one source, there while the sources are being joined."""
        return self.shards / f"{source}.rejects.parquet"

    def shard(self, name: str) -> Path:
        """A tar of the data set, by its name in the manifest.

        Raises:
            RunError: no shard has such a name, which the manifest of a foreign run may hold.
        """
        return self._named(self.shards, name)

    def sample_tar(self, name: str) -> Path:
        """A tar of generated images, by its name in a table. Raises RunError as :meth:`shard`."""
        return self._named(self.samples, name)

    def part(self, shard: str) -> Path:
        """The score part of a shard: ``train-000000.tar`` -> ``scores/part-train-000000.parquet``."""
        return self._part(self.scores, shard)

    def _part(self, folder: Path, shard: str) -> Path:
        return self._named(folder, f"part-{self.shard(shard).stem}.parquet")

    def _named(self, folder: Path, name: str) -> Path:
        try:
            if "/" not in name:
                return inside(self.path, f"{folder.name}/{name}")
        except OutsideError as error:
            raise RunError(f"{self.path}: {error}; the run is damaged, or another's: do not use it") from error
        raise RunError(f"{self.path}: {name!r} is refused: a tar lies in {folder.name}/ itself; the run is damaged")

    def read_record(self) -> dict[str, Any]:
        """``run.json``.

        Raises:
            RunError: this is not a run directory, its record is damaged, or a newer latentprint made it.
        """
        if not self.record.exists():
            raise RunError(f"{self.path}: not a run directory (no run.json); make one with 'latentprint audit'")
        try:
            record = read_json(self.record)
            version = int(record.get("schema_version", 0))
            if version <= SCHEMA_VERSION:
                _require_objects(record)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RunError(f"{self.record}: damaged ({error}): put it back, or start another run") from error
        if version > SCHEMA_VERSION:
            raise RunError(
                f"{self.path}: a newer latentprint made this run (schema_version {version}, this one reads "
                f"{SCHEMA_VERSION} and lower): install a newer latentprint"
            )
        return record

    def claim(self, stage: str, identity: Mapping[str, Any]) -> None:
        """Record what a stage of this run is made from, before it writes; or resume it, if that is the same.

        Args:
            stage: ``data``, ``scoring``, ...: a field of ``run.json``.
            identity: inputs and parameters, JSON values.

        Raises:
            RunError: the directory holds a run made from something else.
        """
        record = self.read_record() if self.record.exists() else {"schema_version": SCHEMA_VERSION}
        known = record.get(stage)
        if known is not None and known != identity:
            raise RunError(f"{self.path} holds another run ({difference(known, identity)}): choose another --out")
        if known is None:
            write_json(self.record, {**record, stage: identity})

    def forget(self, stage: str) -> None:
        """Take a claim back, of which nothing came."""
        record = self.read_record() if self.record.exists() else {}
        if stage in record:
            write_json(self.record, {name: value for name, value in record.items() if name != stage})

    def update_record(self, **fields: Any) -> None:
        """Add or replace top-level fields of ``run.json``."""
        write_json(self.record, {**self.read_record(), **fields})

    def lock(self) -> AbstractContextManager[None]:
        """Hold the directory for writing; see :func:`latentprint.tasks.store.ownership.held`."""
        return held(self.path, "run")


def _require_objects(record: Mapping[str, Any]) -> None:
    """Refuse a record whose inputs are not objects: whoever reads them takes them for such.

    Raises:
        ValueError: one is none.
    """
    for stage in ("data", "scoring"):
        inputs = record.get(stage, {})
        parts = ("sources", "fingerprints", "parameters")
        if not isinstance(inputs, Mapping) or not all(isinstance(inputs.get(part, {}), Mapping) for part in parts):
            raise ValueError(f"{stage} is not as latentprint writes it")


def difference(known: Any, wanted: Any, name: str = "") -> str:
    """The first place in which two identities differ, in words."""
    if isinstance(known, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*known, *wanted}):
            if known.get(key) != wanted.get(key):
                return difference(known.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    if name.startswith("fingerprints.") and known and wanted:
        source = name.partition(".")[2]
        split, number = split_of(source), holdout_source(source)
        return f"the files of --{split}{f' number {number + 1}' if number else ''} have changed"
    return f"{name.rpartition('.')[2]}: {known} there, {wanted} now"
