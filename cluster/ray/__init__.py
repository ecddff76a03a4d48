"""Ray: a session, a pool of model workers, a bounded map, a launcher of training jobs."""
