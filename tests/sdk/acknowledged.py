"""Writes until the server is gone and notes every answer, or checks that all that was answered is there.

    acknowledged.py write ROUND
    acknowledged.py check
"""

import io
import sys
import threading

from baidubce.exception import BceHttpClientError

from common import client, equal, header, md5, pattern

BUCKET = "kill"
SIZES = (0, 50, 4096, 5000, 120000)


def data_of(name, index):
    return pattern(SIZES[index % len(SIZES)], hash_of(name) + index)


def hash_of(name):
    return sum(name.encode())


def write(round_name):
    bos = client()
    log = open("acknowledged", "a")

    def work(name):
        try:
            upload_id = bos.initiate_multipart_upload(BUCKET, name).upload_id
            for index in range(5000):
                data = data_of(name, index)
                if index % 2:
                    bos.put_object(BUCKET, "%s/%d" % (name, index), io.BytesIO(data), len(data))
                    line = "object %s %d\n" % (name, index)
                else:
                    bos.upload_part(BUCKET, name, upload_id, index + 1, len(data), io.BytesIO(data))
                    line = "part %s %d %s\n" % (name, index, upload_id)
                log.write(line)
                log.flush()
        except BceHttpClientError as error:
            # The kill. A refusal would have a status.
            equal(error.status_code, None)

    threads = [threading.Thread(target=work, args=("w%s-%d" % (round_name, n),)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def check():
    bos = client()
    parts = {}
    lines = open("acknowledged").read().splitlines()
    for line in lines:
        kind, name, index, *rest = line.split()
        data = data_of(name, int(index))
        if kind == "object":
            assert bos.get_object_as_string(BUCKET, "%s/%s" % (name, index)) == data, line
        else:
            upload = (name, rest[0])
            if upload not in parts:
                listed = bos.list_all_parts(BUCKET, *upload)
                parts[upload] = {part.part_number: (part.size, part.etag) for part in listed}
            equal(parts[upload].get(int(index) + 1), (len(data), md5(data)))
    # The bytes of parts too, not only what the index says of them: the last part may be of any size.
    for (name, upload_id), there in parts.items():
        number = max(number for number, (size, _) in there.items())
        listed = [{"partNumber": number, "eTag": there[number][1]}]
        answer = bos.complete_multipart_upload(BUCKET, name, upload_id, listed)
        equal(answer.etag, there[number][1])
        equal(md5(bos.get_object_as_string(BUCKET, name)), there[number][1])
    print(len(lines), "acknowledged, all there")


if sys.argv[1] == "write":
    write(sys.argv[2])
else:
    check()
