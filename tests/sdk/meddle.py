"""Does to a key what another tool does while bosfs works on it: meddle.py abort|complete|overwrite BUCKET KEY UPLOAD_ID."""

import sys

from common import client

act, bucket, key, upload_id = sys.argv[1:5]
bos = client()

if act == "abort":
    bos.abort_multipart_upload(bucket, key, upload_id)
elif act == "complete":
    listed = bos.list_parts(bucket, key, upload_id).parts
    assert listed, "the upload has no parts"
    parts = [{"partNumber": part.part_number, "eTag": part.etag} for part in listed]
    bos.complete_multipart_upload(bucket, key, upload_id, parts)
elif act == "overwrite":
    bos.put_object_from_string(bucket, key, "somebody else's")
else:
    raise SystemExit("unknown: " + act)
print("done")
