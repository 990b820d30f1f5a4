"""What children of the fork server would each do first; importing this does it once for all.

Put here: caches of the process that are filled by use. Keep out: threads, connections, locks.
"""

from s3_server import make_client

make_client("http://127.0.0.1:9")  # reads boto3's models of services
