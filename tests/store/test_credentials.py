"""A key in a location is seen, and never shown."""

from __future__ import annotations

import pytest

from latentprint.tasks.datasets.sources import SourceError, locate
from latentprint.tasks.store.credentials import has_secret, redacted

SECRETS = [
    "s3://bucket/x?access_key=AKIA&secret_key=hunter2",
    "s3://bucket/x?region=us-east-1&session_token=hunter2",
    "s3://AKIA:hunter2@bucket/x",
    "s3://AKIA:hunt/hunter2@bucket/x",
    "s3://AKIA:hunter2",
    "s3://hunter2@bucket",
    "s3://bucket/x?hunter2",
    "s3://bucket/x?Secret_Key=hunter2",
    "s3://bucket/x#secret_key=hunter2",
    "s3://bucket/x?region=a?secret_key=hunter2",
    "s3://bucket/x?region=a;secret_key=hunter2",
    "s3://bucket/x?endpoint_override=http://u:hunter2@host",
    "s3://bucket/x?endpoint_override=http%3A%2F%2Fu%3Ahunter2%40host",
    "S3://bucket/x?secret_key=hunter2",
    "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=hunter2",
    "https://host/x?sig=hunter2",
    "https://user:hunter2@host/x",
    "https://user:hun/hunter2@host/x",
    "gs://bucket/x?Goog-Signature=hunter2",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_secret_is_seen_and_taken_out_and_the_location_refused(url: str) -> None:
    assert has_secret(url)
    assert "hunter2" not in redacted(f"'{url}': cannot be reached ({url})")
    with pytest.raises(SourceError) as refusal:
        locate(url)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/photos@2x/a;b=c.png",
        "s3://bucket/x?endpoint_override=localhost:9000&scheme=http&region=eu-west-1&allow_bucket_creation=true",
        "s3://bucket/{a,b}/[0-9]*?region=eu-west-1",
        "http://127.0.0.1:4200/api",
        "http://[::1]:4200/api",
        "sqlite:///mlflow.db?mode=ro",
        "no URL, but a@b.c and key=value",
    ],
)
def test_what_is_no_secret_stays(url: str) -> None:
    assert redacted(url) == url


def test_a_long_name_is_looked_through_once_and_the_url_behind_it_found() -> None:
    """A query with a function of 100,000 letters was refused after minutes; this test would take half an hour."""
    assert redacted("x" * 300_000) == "x" * 300_000
    assert redacted("x" * 300_000 + "://key:secret@host/a") == "x" * 300_000 + "://***@host/a"
