"""The leaderboard of scheduled evaluations: its history in Parquet, and its page."""
