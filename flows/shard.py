"""Turn data sets into WebDataset shards and one manifest.

source of each split -> shards/SPLIT-*.tar + rows   -> manifest.parquet, rejects.parquet
"""

from pathlib import Path

from prefect import flow

from tasks.datasets.fingerprint import fingerprint
from tasks.datasets.sources import open_source
from tasks.parameters import ShardParameters
from tasks.shard import join_manifest, require_apart, shard_split, start_afresh
from tasks.store.checksums import add_checksums, is_sharded, read_checksums
from tasks.store.manifest import count_images, manifest_digest
from tasks.store.reuse import share_shards
from tasks.store.run import RunDirectory


@flow(name="shard", flow_run_name="shard {run}")
def shard(
    run: Path,
    train: str,
    holdout: str | None = None,
    parameters: ShardParameters = ShardParameters(),
    reuse: Path | None = None,
) -> None:
    """Shard the training images and, if given, the holdout; what is finished already is kept.

    ``reuse``, another run of the same images, shares its shards.

    Raises:
        SourceError: a source is missing, unreadable, empty, or too much of it is.
        RunError: the directory holds a run of other images, or is in use.
    """
    directory = RunDirectory(run)
    sources = {"train": train} | ({"holdout": holdout} if holdout else {})
    for location in sources.values():
        open_source(location)
        require_apart(directory, location)
    splits = [directory.split_manifest(split) for split in sources]
    with directory.lock():
        if not any(made.exists() for made in (directory.manifest, *splits)):
            start_afresh(directory)
        directory.claim(
            "data",
            {
                "sources": sources,
                "fingerprints": {split: fingerprint(location) for split, location in sources.items()},
                "parameters": parameters.model_dump(mode="json"),
            },
        )
        resharded = not is_sharded(directory)
        if resharded and not (reuse and share_shards(directory, RunDirectory(reuse))):
            directory.manifest.unlink(missing_ok=True)
            for split, location in sources.items():
                shard_split(run, split, location, parameters)
            join_manifest(run, list(sources))
        if resharded or directory.manifest.name not in read_checksums(directory):
            add_checksums(directory, [directory.manifest, directory.rejects, *directory.shards.glob("*.tar")])
        directory.update_record(
            manifest_digest=manifest_digest(directory.manifest), images=count_images(directory.manifest)
        )
