"""Message code generated from reelmesh_etcd.proto; see tools/gen_protos.py."""
