"""Rows into batches: packing, attention layouts, losses over packed rows, streams."""
