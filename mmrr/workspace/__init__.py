"""The workspace on disk: artifacts, shards, files, removal, verification."""
