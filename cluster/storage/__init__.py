"""Stores of files: local folders, S3, and a node's cache of remote files."""
