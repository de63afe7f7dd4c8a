"""What clients ask over HTTP: one module for each group of endpoints, each with a `router`."""
