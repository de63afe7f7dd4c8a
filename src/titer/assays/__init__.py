"""How immune a model is: the four immunization conditions (arXiv 2402.16382), made measurable."""

from titer.assays.profile import Profile, read_profile

__all__ = ["Profile", "read_profile"]
