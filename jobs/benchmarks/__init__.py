"""What ``jobs/benchmark.py`` measures; nothing else imports it."""
