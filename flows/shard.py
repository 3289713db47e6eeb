"""Turn data sets into WebDataset shards and one manifest.

each source -> shards/SOURCE-*.tar + rows   -> manifest.parquet, rejects.parquet
"""

from pathlib import Path

from prefect import flow

from latentprint.tasks.datasets.apart import require_apart
from latentprint.tasks.datasets.holdouts import named_sources, require_held_out
from latentprint.tasks.datasets.labels import class_ids_of
from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.parameters import ShardParameters
from latentprint.tasks.shard import compare_sources, join_manifest, made_from, shard_split, start_afresh
from latentprint.tasks.store.checksums import add_checksums, is_sharded, read_checksums
from latentprint.tasks.store.manifest import count_images, manifest_digest, require_columns
from latentprint.tasks.store.reuse import share_shards
from latentprint.tasks.store.run import RunDirectory


@flow(name="shard", flow_run_name="shard {run}")
def shard(
    run: Path,
    train: str,
    holdout: str | list[str] | None = None,
    parameters: ShardParameters = ShardParameters(),
    reuse: Path | None = None,
) -> None:
    """Shard the training images and any held-out sources; what is finished already is kept.

    ``reuse``, another run of the same images, shares its shards.

    Raises:
        SourceError: a source is missing, unreadable, empty, or too much of it is; or two sources are one.
        RunError: the directory holds a run of other images or of an earlier version, or is in use.
    """
    directory = RunDirectory(run)
    sources = named_sources(train, holdout)
    require_held_out(sources)
    for location in sources.values():
        open_source(location)
        require_apart(directory.path, location, directory.location)
    parts = [directory.split_manifest(name) for name in sources]
    with directory.lock():
        if not any(made.exists() for made in (directory.manifest, *parts)):
            start_afresh(directory)
        directory.claim("data", made_from(sources, parameters))
        if reuse:  # before anything of it is read, so that nobody removes it meanwhile
            directory.update_record(reused={"run": RunDirectory(reuse).place})
        resharded = not is_sharded(directory)
        if resharded and not (reuse and share_shards(directory, RunDirectory(reuse))):
            directory.manifest.unlink(missing_ok=True)
            for name, location in sources.items():
                shard_split(run, name, location, parameters)
            join_manifest(run, list(sources))
        require_columns(directory.manifest)
        if class_ids := class_ids_of(sources):  # before the sums, by which the images count as sharded
            directory.update_record(class_ids=class_ids)
        if resharded or directory.manifest.name not in read_checksums(directory):
            add_checksums(directory, [directory.manifest, directory.rejects, *directory.shards.glob("*.tar")])
        directory.update_record(
            manifest_digest=manifest_digest(directory.manifest),
            images=count_images(directory.manifest),
            images_by_source=compare_sources(run, sources),
        )
