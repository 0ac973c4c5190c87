"""The story bosfs began with, in three programs that know nothing of one another:

    story.py start FILE KEY     initiates, uploads the first 28 parts, saves what it knows in KEY.json, and is gone
    story.py finish FILE KEY    goes on from KEY.json
    story.py find FILE KEY      has lost KEY.json: looks for the upload in the bucket, asks which parts are there
"""

import json
import sys

from common import client, composed, equal, header, md5

BUCKET = "story"
PART = 256 << 10
SENT_FIRST = 28


def parts_of(data):
    return [data[at:at + PART] for at in range(0, len(data), PART)]


def send(bos, key, upload_id, number, data, file_name):
    answer = bos.upload_part_from_file(BUCKET, key, upload_id, number, len(data), file_name, (number - 1) * PART)
    equal(header(answer, "etag"), md5(data))
    return {"partNumber": number, "eTag": header(answer, "etag")}


def start(bos, file_name, key, parts):
    # Others upload to the same bucket and even to the same key.
    for other in ("aaa", key, "zzz/" + key):
        stray = bos.initiate_multipart_upload(BUCKET, other).upload_id
        bos.upload_part_from_file(BUCKET, other, stray, 1, 1000, file_name, 0)
    upload_id = bos.initiate_multipart_upload(BUCKET, key, content_type="application/x-iso").upload_id
    listed = [send(bos, key, upload_id, n + 1, parts[n], file_name) for n in range(SENT_FIRST)]
    with open(key + ".json", "w") as saved:
        json.dump({"uploadId": upload_id, "parts": listed}, saved)


def complete(bos, file_name, key, parts, upload_id, listed):
    equal([part["partNumber"] for part in listed], list(range(1, SENT_FIRST + 1)))
    for number in range(SENT_FIRST + 1, len(parts) + 1):
        listed.append(send(bos, key, upload_id, number, parts[number - 1], file_name))
    answer = bos.complete_multipart_upload(BUCKET, key, upload_id, listed)
    equal(answer.etag, composed([md5(part) for part in parts]))
    meta = bos.get_object_meta_data(BUCKET, key)
    equal(header(meta, "content-type"), "application/x-iso")
    equal(int(header(meta, "content-length")), sum(map(len, parts)))
    assert bos.get_object_as_string(BUCKET, key) == b"".join(parts), "the object differs from the file"
    left = [upload.upload_id for upload in bos.list_all_multipart_uploads(BUCKET, prefix=key)]
    assert upload_id not in left and len(left) == 1, left


def finish(bos, file_name, key, parts):
    with open(key + ".json") as saved:
        known = json.load(saved)
    complete(bos, file_name, key, parts, known["uploadId"], known["parts"])


def find(bos, file_name, key, parts):
    uploads = [u.upload_id for u in bos.list_all_multipart_uploads(BUCKET, prefix=key) if u.key == key]
    equal(len(uploads), 2)
    ours = []
    for upload_id in uploads:
        there = list(bos.list_all_parts(BUCKET, key, upload_id))
        if all(part.size == PART and part.etag == md5(parts[part.part_number - 1]) for part in there):
            ours.append((upload_id, [{"partNumber": part.part_number, "eTag": part.etag} for part in there]))
    equal(len(ours), 1)
    complete(bos, file_name, key, parts, *ours[0])


def main():
    step, file_name, key = sys.argv[1:]
    with open(file_name, "rb") as file:
        parts = parts_of(file.read())
    {"start": start, "finish": finish, "find": find}[step](client(), file_name, key, parts)
    print(step, "done")


main()
