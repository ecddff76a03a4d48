"""CapFilt without machines: description, filters, duplicates, output, gallery."""
