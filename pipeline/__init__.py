"""Images and texts on storage to training batches; no model code."""
