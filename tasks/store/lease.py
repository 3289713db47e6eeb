"""One writer at a time for a run in a store: whoever holds its lease, an object ``.lease`` beside the run's files.

The store creates it only where there is none (``If-None-Match: *``), and renews it only where it is still the holder's
(``If-Match``): https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html. So of two machines that
ask at once, one is refused. A holder that was killed renews no more. ``LEASE_SECONDS`` after its last renewal, by the
store's own clock, another machine may take the lease over.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qsl

from latentprint.tasks.errors import first_line
from latentprint.tasks.store.ownership import RunError

LEASE = ".lease"
LEASE_SECONDS = 120.0
RENEW_SECONDS = 30.0
MARGIN_SECONDS = 15.0
"""So long before its lease ends, a holder that could not renew it writes no more."""
MOST_ATTEMPTS = 4
"""To take a lease that is released and taken by others meanwhile."""
LONGEST_LEASE = 2**16
NEVER_MATCHES = '"0"'
"""An ETag that no lease has."""
NOT_SO = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}
"""What a store answers where the condition of a write does not hold."""
logger = logging.getLogger("latentprint")


@dataclass(frozen=True)
class _Found:
    """A lease as it lies in the store."""

    etag: str
    token: str
    holder: str
    until: datetime
    is_over: bool
    """By the clock of the store."""


class Lease:
    """The lease of one run.

    Args:
        run: its URL, as messages name it.
        bucket, key: of the run.
        options: of the URL, as ``pyarrow.fs`` takes them.
    """

    def __init__(self, run: str, bucket: str, key: str, options: str = "") -> None:
        self.run, self.bucket, self.key = run, bucket, f"{key}/{LEASE}"
        self.lost = ""
        """Why it is not ours any more, though it was."""
        self._options = dict(parse_qsl(options))
        self._token, self._n_puts = secrets.token_hex(8), 0
        self._etag, self._until = "", 0.0
        self._lock = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it while the block runs. If another machine takes it over, this process is told to end (SIGTERM).

        Raises:
            RunError: another process holds it; the store does not answer, refuses, or knows no conditional writes;
                boto3 is not installed.
        """
        if find_spec("boto3") is None:
            raise RunError(f"{self.run}: writing to a store needs boto3: pip install 'latentprint[s3]'")
        self._take()
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(RENEW_SECONDS):
                try:
                    with self._lock:
                        self._renew()
                except RunError as error:
                    logger.warning("%s", error)
                    if self.lost:
                        interrupt_main(signal.SIGTERM)
                        return

        renewing = threading.Thread(target=work, name="renew lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            self._release()

    def require(self) -> None:
        """Before each object that is written: is the lease still ours?

        Raises:
            RunError: it is not, or the store does not answer.
        """
        with self._lock:
            if self.lost:
                raise RunError(self.lost)
            if time.time() > self._until - MARGIN_SECONDS:  # the store was away, or this machine asleep
                self._renew()

    def _take(self) -> None:
        for _ in range(MOST_ATTEMPTS):
            if self._put(IfNoneMatch="*"):
                break
            found = self._find()
            if found is None:  # released meanwhile
                continue
            if found.token == self._token:  # the answer to our own put was lost, and the put repeated
                self._etag, self._until = found.etag, time.time()
                break
            if not found.is_over:
                raise RunError(
                    f"{self.run}: {found.holder} writes to this run, at least until {found.until:%H:%M:%S} UTC: "
                    "wait until it is done, or choose another --out"
                )
            if self._put(IfMatch=found.etag):
                logger.info("%s: taken over from %s, which is gone", self.run, found.holder)
                break
        else:
            raise RunError(f"{self.run}: others begin to write to this run now: wait, or choose another --out")
        for header, condition in (("If-None-Match", {"IfNoneMatch": "*"}), ("If-Match", {"IfMatch": NEVER_MATCHES})):
            if self._put(**condition):
                self._release()
                raise RunError(
                    f"{self.run}: this store ignores conditional writes ({header}), so two machines could write to "
                    "one run: choose a local --out, and copy it there"
                )

    def _renew(self) -> None:
        if self._put(IfMatch=self._etag):
            return
        found = self._find()
        if found is not None and found.token == self._token:  # as above
            self._etag = found.etag
            return
        self.lost = (
            f"{self.run}: {found.holder if found else 'another process'} took this run over, since its lease was not "
            "renewed in time; nothing more is published: run again when it is done"
        )
        raise RunError(self.lost)

    def _release(self) -> None:
        if self.lost or time.time() > self._until - MARGIN_SECONDS:
            return  # it may be another's by now
        try:
            with self._answered():
                self._client.delete_object(Bucket=self.bucket, Key=self.key)
        except RunError as error:
            logger.warning("%s; its lease ends after %.0f seconds", error, LEASE_SECONDS)

    def _put(self, **condition: str) -> bool:
        """Write it if the condition holds; does it?"""
        from botocore.exceptions import ClientError

        begin, self._n_puts = time.time(), self._n_puts + 1
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        body = json.dumps({"token": self._token, "holder": holder, "n_puts": self._n_puts}).encode()
        with self._answered():
            try:
                answer = self._client.put_object(Bucket=self.bucket, Key=self.key, Body=body, **condition)
            except ClientError as error:
                if error.response["Error"]["Code"] in NOT_SO:
                    return False
                raise
        self._etag, self._until = answer["ETag"], begin + LEASE_SECONDS
        return True

    def _find(self) -> _Found | None:
        """What lies there now; None: nothing."""
        from botocore.exceptions import ClientError

        with self._answered():
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self.key)
                content = json.loads(answer["Body"].read(LONGEST_LEASE))
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchKey":
                    return None
                raise
            except ValueError:
                content = {}
        fields = content if isinstance(content, dict) else {}
        until: datetime = answer["LastModified"] + timedelta(seconds=LEASE_SECONDS)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        holder = str(fields.get("holder", "another program"))
        return _Found(answer["ETag"], str(fields.get("token", "")), holder, until, now > until)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (OSError, BotoCoreError, Boto3Error, ClientError) as error:
            raise RunError(f"{self.run}: the store refuses or does not answer ({first_line(error)})") from error

    @cached_property
    def _client(self) -> Any:
        """Of the same store as ``pyarrow.fs`` reaches by these options; both know the environment of the AWS SDKs."""
        import boto3
        from botocore.config import Config

        given = self._options
        endpoint = given.get("endpoint_override")
        if endpoint and "://" not in endpoint:
            endpoint = f"{given.get('scheme', 'https')}://{endpoint}"
        own = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=given.get("region"),
            verify=_verified(given),
            config=Config(
                connect_timeout=10,
                read_timeout=20,
                retries={"max_attempts": 3, "mode": "standard"},
                request_checksum_calculation="when_required",  # other stores than Amazon's may not know them
                s3={"addressing_style": "path" if own else "auto"},
            ),
        )


def _verified(options: dict[str, str]) -> bool | str | None:
    """``verify`` of boto3: a file of certificates, or whether they are looked at; None: as the SDK has it."""
    if options.get("tls_verify_certificates", "").lower() in ("false", "0", "off"):
        return False
    return options.get("tls_ca_file_path")
