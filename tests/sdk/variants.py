"""What a server with all variants switched on answers."""

import io

from common import MIB, client, composed, equal, header, md5, pattern, refused

BUCKET = "variants"
bos = client()
bos.create_bucket(BUCKET)

answer = bos.put_object(BUCKET, "k", io.BytesIO(b"v"), 1, content_crc32c_flag="true")
meta = bos.get_object_meta_data(BUCKET, "k")
for name in ("x-bce-content-crc32", "x-bce-content-crc32c", "x-bce-content-crc64ecma", "content-md5"):
    equal((header(answer, name), header(meta, name)), (None, None))
assert header(answer, "etag") == header(meta, "etag") != md5(b"v")
equal(bos.get_object_as_string(BUCKET, "k"), b"v")

bos.delete_object(BUCKET, "missing")
equal(bos.delete_multiple_objects(BUCKET, ["missing"]).errors, None)


def parts(first):
    upload_id = bos.initiate_multipart_upload(BUCKET, "multi").upload_id
    listed = []
    for number, data in ((1, first), (2, b"tail")):
        answer = bos.upload_part(BUCKET, "multi", upload_id, number, len(data), io.BytesIO(data))
        assert header(answer, "etag") != md5(data)
        listed.append({"partNumber": number, "eTag": header(answer, "etag")})
    return upload_id, listed


complete = bos.complete_multipart_upload
refused(400, "EntityTooSmall", complete, BUCKET, "multi", *parts(pattern(5 * MIB - 1)))
refused(400, "EntityTooSmall", complete, BUCKET, "multi", *parts(pattern(5 * MIB + 1)))
upload_id, listed = parts(pattern(6 * MIB))
answer = complete(BUCKET, "multi", upload_id, listed, content_crc32c_flag="true")
assert answer.etag.startswith("-") and answer.etag != composed([part["eTag"] for part in listed])
equal(header(bos.get_object_meta_data(BUCKET, "multi"), "x-bce-content-crc32"), None)
assert bos.get_object_as_string(BUCKET, "multi") == pattern(6 * MIB) + b"tail"
print("all passed")
