"""The calls that bosfs needs, made by the official SDK. Every check can fail; the last line printed is "all passed"."""

import base64
import binascii
import hashlib
import io
import os
import time
import traceback

from baidubce.auth.bce_credentials import BceCredentials
from baidubce.bce_client_configuration import BceClientConfiguration
from baidubce.exception import BceHttpClientError
from baidubce.retry.retry_policy import NoRetryPolicy
from baidubce.services.bos.bos_client import BosClient

BUCKET = "suite"
MIB = 1 << 20


def client(secret=None, key_id=None, **more):
    credentials = BceCredentials(
        key_id or os.environ["BCE_ACCESS_KEY_ID"], secret or os.environ["BCE_SECRET_ACCESS_KEY"]
    )
    return BosClient(
        BceClientConfiguration(
            credentials=credentials, endpoint=os.environ["BOS_ENDPOINT"], retry_policy=NoRetryPolicy(), **more
        )
    )


bos = client()


def md5(data):
    return hashlib.md5(data).hexdigest()


def refused(status, code, call, *args, **named):
    """Makes a call that must be refused with this status and code (None: HEAD, whose errors have no body)."""
    try:
        call(*args, **named)
    except BceHttpClientError as error:
        seen = (error.status_code, error.code)
        assert seen == (status, code if code is not None else seen[1]), (seen, (status, code))
        return
    raise AssertionError("not refused: %s %s" % (call.__name__, args))


def pattern(size, seed=1):
    block = hashlib.sha256(b"%d" % seed).digest()
    return (block * (size // len(block) + 1))[:size]


def header(response, name):
    """A header of an answer; the SDK turns names into attributes and may strip quotes."""
    return getattr(response.metadata, name)


def test_put_get_head():
    for size in (0, 1, 4095, 4096, 4097, 300000):
        data = pattern(size)
        answer = bos.put_object_from_string(BUCKET, "obj/%d" % size, data)
        assert header(answer, "etag") == md5(data), answer
        got = bos.get_object_as_string(BUCKET, "obj/%d" % size)
        assert got == data, size
        head = bos.get_object_meta_data(BUCKET, "obj/%d" % size)
        assert int(header(head, "content_length")) == size
        assert header(head, "etag") == md5(data)
        assert header(head, "content_md5") == base64.b64encode(hashlib.md5(data).digest()).decode()
        assert int(header(head, "bce_content_crc32")) == binascii.crc32(data)
    refused(404, "NoSuchKey", bos.get_object_as_string, BUCKET, "missing")
    refused(404, None, bos.get_object_meta_data, BUCKET, "missing")
    refused(404, "NoSuchBucket", bos.get_object_as_string, "no-such-bucket", "k")


def main():
    bos.create_bucket(BUCKET)
    failures = 0
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    for name, test in tests:
        try:
            test()
        except Exception:
            failures += 1
            print("FAILED", name)
            traceback.print_exc()
    if failures:
        raise SystemExit("%d of %d failed" % (failures, len(tests)))
    print("%d tests, all passed" % len(tests))


main()
