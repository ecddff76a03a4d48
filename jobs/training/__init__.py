"""Everything that the training jobs share: command line, plan, objectives, loop."""
