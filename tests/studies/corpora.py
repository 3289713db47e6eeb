"""Hostile and odd files that nobody here made: what do the parsers and the pages make of them?

    python -m tests.studies.corpora                  # ten minutes of one core, and the network
    python -m tests.studies.corpora --only names

Fetched into ``--folder`` where they are not there yet, and never bundled:

- the images of Pillow's own tests (PyPI ``pillow``, the source distribution), decoded one by one;
- strings that break software (npm ``big-list-of-naughty-strings``) as names of images, labels, metadata and the model
  of a whole run, whose pages are opened in Chromium;
- pickles that run code (github.com/mmaitre314/picklescan, ``tests``) as weights, as a condition and as images;
- damaged and odd Parquet (github.com/apache/parquet-testing) as images and as a run's manifest.

Each file is read in a child process of bounded memory and time that may unpickle nothing and start nothing. Of each
corpus: how many were tried, read, refused by name, crashed, hung. Exit code 1 if any crashed, hung, ran or spoke.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from latentprint.runs import audit
from latentprint.tasks.datasets.decoding import Rejected, decode
from latentprint.tasks.diffusion.checkpoint_files import read_condition
from latentprint.tasks.parameters import ComputeParameters, ScoreParameters, ValidityParameters
from latentprint.tasks.publish.read import card
from tests.attempts import Child, Outcome
from tests.browser import headless_chromium
from tests.datasets.hostile import encoded
from tests.fuzzing import ANY_BYTES, TARGETS, Damage, Target, Trial, images, load, write_checkpoint
from tests.pages.test_in_browser import external, opened, unfold
from tests.studies.kills import write_inputs

RESULT = Path(__file__).parent / "results" / "corpora.json"
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "subprocess.Popen", "socket.connect", "os.posix_spawn")
"""Python's audit events of what a hostile file would set off."""
MOST_SHOWN = 10
N_EXPLAINED = 4
"""Images whose names hold markup and that are explained on a page of their own, or one more."""
Row = dict[str, Any]
Named = tuple[str, bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where corpora are kept; default: a temporary folder")
    parser.add_argument("--only", choices=STUDIES, help="one corpus; nothing is written into results/")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="corpora-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[Row] = []
        for name in [options.only] if options.only else STUDIES:
            try:
                for row in STUDIES[name](folder):
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
            except (OSError, subprocess.CalledProcessError) as error:
                rows.append({"corpus": name, "missing": f"cannot be fetched ({error})"})
    if not options.only:
        RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(any(row.get("crashed") or row.get("hung") or row.get("spoke") for row in rows))


def pillow(folder: Path) -> Iterator[Row]:
    """Every file beside Pillow's tests is an image, or is meant to be refused."""
    source = _packed(folder, "pillow-*.tar.gz", [sys.executable, "-m", "pip", "download", *SOURCE_ONLY, "pillow"])
    files = _members(source, "/Tests/images/")
    yield _tried(f"{source.name}: images", files, (Rejected,), _decoded)


def _decoded(content: Path) -> str:
    picture = decode(content.read_bytes())
    return f"{picture.pixels.shape}"


def names(folder: Path) -> Iterator[Row]:
    """A run of which every name is a naughty string, and its pages in a browser."""
    package = _packed(folder, "big-list-of-naughty-strings-*.tgz", ["npm", "pack", "big-list-of-naughty-strings"])
    ((_, content),) = _members(package, "package/blns.json")
    strings: list[str] = json.loads(content)
    with TemporaryDirectory(prefix="names-") as home:
        yield _named_run(Path(home), strings) | {"corpus": f"{package.name}: names of a run"}


def _named_run(home: Path, strings: list[str]) -> Row:
    """Training images in a zip, whose members may have any name; held-out ones in a folder, with metadata."""
    pictures = [
        encoded(Image.fromarray(pixels), "PNG") for pixels in (load_digits().images / 16 * 255).round().astype("uint8")
    ]
    with zipfile.ZipFile(home / "train.zip", "w") as archive:
        for number, (text, image) in enumerate(zip(strings, pictures, strict=False)):
            archive.writestr(f"{text}/{number} {text}.png", image)
    (home / "holdout").mkdir()
    with (home / "holdout" / "metadata.jsonl").open("w") as rows:
        for number, (text, image) in enumerate(zip(strings, pictures[len(strings) :], strict=False)):
            name = f"{number} {text}"[:60].replace("/", "\u2215").replace("\0", "") + ".png"
            (home / "holdout" / name).write_bytes(image)
            rows.write(json.dumps({"file_name": name, "artist": text, text: number}) + "\n")
    write_inputs(home)
    model = home.joinpath(*[text.strip("/") for text in strings if "<" in text and len(text) < 60][:12])
    model.parent.mkdir(parents=True)
    (home / "model").rename(model)
    few, one = ValidityParameters(images=8), ComputeParameters(devices=("cpu",), threads=1)
    inputs = str(model), str(home / "train.zip"), str(home / "run")
    with audit(
        *inputs, holdout=home / "holdout", scoring=ScoreParameters(timestep=20), validity=few, compute=one
    ) as run:
        counts = {name: run.table(name).num_rows for name in ("images", "rejects")}
        named = (
            run.query("SELECT sample_id FROM ranking WHERE sample_id LIKE '%<%' ORDER BY rank").column(0).to_pylist()
        )
    pages, printed = [run.report], [card(run.path, kind) for kind in ("model", "dataset", "metadata")]
    for number, sample in enumerate(named[:: len(named) // N_EXPLAINED]):
        pages.append(home / f"explained-{number}.html")
        printed.append(_latentprint("explain", sample, "--run", run.path, "--html", pages[-1]))
    printed.append(_latentprint("sql", "SELECT * FROM images", "--run", run.path))
    spoke = [f"control characters in the output of command {i}" for i, text in enumerate(printed) if _steers(text)]
    with headless_chromium() as browser:
        for page in pages:
            result = opened(browser, page)
            unfold(result.page)
            found = {"dialog": result.dialogs, "console": result.console, "request": external(result)}
            spoke += [f"{page.name}: {kind}: {text}"[:300] for kind, texts in found.items() for text in texts]
    n_tried = 2 * len(strings)
    n_hidden = n_tried - counts["images"] - counts["rejects"]  # what follows their last slash begins with a dot
    counted = {"tried": n_tried, "read": counts["images"], "refused": counts["rejects"], "hidden": n_hidden}
    return {"corpus": "", **counted, "pages": len(pages), "printed": len(printed), "spoke": spoke}


def _latentprint(*arguments: object) -> str:
    command = [sys.executable, "-m", "latentprint", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _steers(text: str) -> bool:
    return bool(set(text) & set("\x1b\x07\x9b\u202e\r\x7f"))


def pickles(folder: Path) -> Iterator[Row]:
    """As a checkpoint's weights by their own name and by the name that is read, and wherever else arrays are read."""
    source = _checkout(folder, "picklescan", "https://github.com/mmaitre314/picklescan")
    files = [(path.name, path.read_bytes()) for path in sorted(source.glob("tests/data*/*")) if path.is_file()]
    name = f"picklescan {_digest(files)}"
    for target in ("checkpoint: weights", "npz", "zip", "tar"):
        yield _by_trial(f"{name}: as {Path(TARGETS[target].file).name}", files, TARGETS[target])
    pickled = "unet/diffusion_pytorch_model.bin"
    yield _by_trial(f"{name}: as {pickled}", files, Target(_write_pickled, pickled, load, ANY_BYTES))
    for array in ("condition.npy", "x.npy"):
        yield _by_trial(f"{name}: as {array}", files, Target(_write_array, array, ARRAYS[array], ANY_BYTES))


def _write_pickled(folder: Path) -> None:
    write_checkpoint(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def _write_array(folder: Path) -> None:
    for name in ARRAYS:
        np.save(folder / name, np.zeros((2, 6), np.float32))


def _condition(folder: Path) -> str:
    read_condition(folder / "condition.npy", 6)
    return "a condition"


ARRAYS: dict[str, Callable[[Path], str]] = {"condition.npy": _condition, "x.npy": images("x.npy")}


def parquet(folder: Path) -> Iterator[Row]:
    """As a table of images and as the manifest of a run."""
    source = _checkout(folder, "parquet-testing", "https://github.com/apache/parquet-testing")
    found = sorted(path for kind in ("bad_data", "data") for path in (source / kind).rglob("*.parquet*"))
    files = [(path.name, path.read_bytes()) for path in found if path.suffix != ".json"]
    name = f"parquet-testing {_digest(files)}"
    yield _by_trial(f"{name}: as images", files, TARGETS["Parquet"])
    yield _by_trial(f"{name}: as a manifest", files, TARGETS["manifest.parquet"])


STUDIES: dict[str, Callable[[Path], Iterator[Row]]] = {
    "pillow": pillow,
    "names": names,
    "pickles": pickles,
    "parquet": parquet,
}
SOURCE_ONLY = ("--no-binary", ":all:", "--no-deps", "--dest", ".")


def _by_trial(title: str, files: list[Named], target: Target) -> Row:
    """Each file in place of the one that a target of ``tests.fuzzing`` reads."""
    with TemporaryDirectory(prefix="corpora-") as home, Trial(target, Path(home), guarded) as trial:
        return _counted(title, ((name, trial(_instead(content))) for name, content in files))


def _instead(content: bytes) -> Damage:
    return lambda _: content


def _tried(title: str, files: list[Named], errors: tuple[type[Exception], ...], read: Callable[[Path], str]) -> Row:
    with TemporaryDirectory(prefix="corpora-") as home:
        path, child = Path(home) / "file", Child(errors)
        function = guarded(lambda: read(path))

        def outcomes() -> Iterator[tuple[str, Outcome]]:
            for name, content in files:
                path.write_bytes(content)
                yield name, child(function)

        try:
            return _counted(title, outcomes())
        finally:
            child.close()


def guarded(read: Callable[[], str]) -> Callable[[], str]:
    """``read`` in a process that from then on ends where anything is unpickled or started."""
    parent = os.getpid()
    is_set: list[bool] = []

    def stop(event: str, _: object) -> None:
        if event in FORBIDDEN:
            os._exit(99)

    def run() -> str:
        if os.getpid() != parent and not is_set:
            is_set.append(True)
            sys.addaudithook(stop)
        return read()

    return run


def _counted(title: str, outcomes: Iterator[tuple[str, Outcome]]) -> Row:
    counts, bad = Counter[str](), []
    for name, outcome in outcomes:
        counts[outcome.kind] += 1
        if outcome.kind not in ("read", "refused"):
            bad.append(f"{name}: {outcome.kind}, {outcome.words}"[:300])
            print(title, bad[-1], file=sys.stderr, flush=True)
    kinds = {kind: counts[kind] for kind in ("read", "refused", "crashed", "hung")}
    return {"corpus": title, "tried": counts.total(), **kinds, "bad": bad[:MOST_SHOWN]}


def _packed(folder: Path, pattern: str, command: list[str]) -> Path:
    """A package's archive, fetched by the registry's own client if it is not there."""
    if not list(folder.glob(pattern)):
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return max(folder.glob(pattern))


def _checkout(folder: Path, name: str, url: str) -> Path:
    if not (folder / name).is_dir():
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", url, str(folder / name)], check=True)
    return folder / name


def _members(archive: Path, part: str) -> list[Named]:
    """The regular files of a tar whose names hold ``part``; they are not unpacked to disk."""
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as content:
        found = sorted((m for m in content if m.isfile() and part in m.name), key=lambda member: member.name)
        streams = ((member.name, content.extractfile(member)) for member in found)
        return [(name.rpartition(part)[2] or name, stream.read()) for name, stream in streams if stream]


def _digest(files: list[Named]) -> str:
    """Which version of a corpus it was."""
    return hashlib.sha256(b"".join(content for _, content in files)).hexdigest()[:12]


if __name__ == "__main__":
    main()
