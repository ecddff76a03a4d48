"""What a person runs: the only place that sees every other package."""
