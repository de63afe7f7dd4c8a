"""Chat with base and fine-tuned models: one base in memory, adapters over it, answers batched across requests."""
