"""What the scripts share: a client made from the environment, bytes to send, checks that fail."""

import hashlib
import os

from baidubce.auth.bce_credentials import BceCredentials
from baidubce.bce_client_configuration import BceClientConfiguration
from baidubce.exception import BceHttpClientError
from baidubce.retry.retry_policy import NoRetryPolicy
from baidubce.services.bos.bos_client import BosClient

MIB = 1 << 20


def client(secret=None, key_id=None, endpoint=None, **more):
    credentials = BceCredentials(
        key_id or os.environ["BCE_ACCESS_KEY_ID"], secret or os.environ["BCE_SECRET_ACCESS_KEY"]
    )
    return BosClient(
        BceClientConfiguration(
            credentials=credentials,
            endpoint=endpoint or os.environ["BOS_ENDPOINT"],
            retry_policy=NoRetryPolicy(),
            under_line_headers=False,
            **more
        )
    )


def md5(data):
    return hashlib.md5(data).hexdigest()


def pattern(size, seed=1):
    """Bytes that differ from place to place and from seed to seed."""
    out = bytearray()
    counter = 0
    while len(out) < size:
        out += hashlib.sha512(b"%d/%d" % (seed, counter)).digest() * 64
        counter += 1
    return bytes(out[:size])


def composed(etags):
    """The ETag of an object of several parts (vendor's live test)."""
    return "-" + md5("".join(etags).encode())


def refused(status, code, call, *args, **named):
    """Makes a call that must be refused with this status and code (None: HEAD, whose errors have no body)."""
    try:
        call(*args, **named)
    except BceHttpClientError as error:
        seen = (error.status_code, error.code)
        assert seen[0] == status and (code is None or seen[1] == code), "%s instead of %s" % (seen, (status, code))
        return
    raise AssertionError("not refused: %s %s" % (call.__name__, args))


def header(response, name):
    """A header of an answer by its name on the wire, in lowercase; None when it is not there."""
    return vars(response.metadata).get(name)


def equal(seen, expected):
    assert seen == expected, "%r instead of %r" % (seen, expected)
