"""An OpenAI-compatible fine-tuning service on local weights: `titer serve`, `titer worker`.

The database and the artefact store are all that the parts share, so that they may run on different machines: the API (`api`)
writes jobs down, workers (`worker`) take them, and the console is pages of the same application.
"""
