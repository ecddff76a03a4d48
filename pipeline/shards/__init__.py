"""Shards on a store: tars, the parquet beside each, plan and commit records, and their reading."""
