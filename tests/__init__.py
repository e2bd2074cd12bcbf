"""The package's mirror image. A package itself, so that spawned processes find these tests and no other `tests`."""
