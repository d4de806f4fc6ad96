"""The store on etcd's v3 API, spoken with our own stubs over grpc.aio.

Every maintained etcd client for Python was tried against a server that was killed,
cut off and compacted, and each lost or invented something. The rules that those
trials forced are named R1 to R9 here and quoted by number where the code obeys them:

R1  Protobuf package and file names are our own (``etcdpb``).
R2  A watch resumes at the last event's mod_revision + 1; it advances by a header only
    on empty responses that are not ``created``.
R3  Compaction means relist and diff; relist from time to time regardless.
R4  A Put or Txn is never repeated blindly: a writer token is read back.
R5  Deadlines of about 1 s, keepalive 5 s / 3 s, reconnect backoff from 1 s.
R6  A lease is liveness, not a lock: each write compares the revision it builds on.
R7  Cluster id, raft term or revision going backwards means a restore.
R8  Auth tokens expire: authenticate again.
R9  The smallest lease is 2 s; a lost raft leader stalls writes for seconds.
"""

from control_plane.store.etcd.client import EtcdStore
from control_plane.store.etcd.connection import EtcdSettings

__all__ = ["EtcdSettings", "EtcdStore"]
