"""From folders, files and hub ids to modules."""
