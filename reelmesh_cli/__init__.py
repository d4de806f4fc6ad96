"""The ``reelmesh`` command: a mesh on one machine, and videos from any mesh."""
