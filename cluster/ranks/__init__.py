"""Training processes: ranks, ZeRO engines, guards, watchdogs, and their end."""
