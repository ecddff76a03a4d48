"""Where bytes live: local folders, S3, and a node's cache of remote files."""
