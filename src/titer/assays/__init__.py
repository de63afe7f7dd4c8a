"""How immune a model is: the four immunization conditions (arXiv 2402.16382), made measurable."""

from typing import Any

from titer.assays.profile import Profile, read_profile

__all__ = ["Profile", "assay", "read_profile"]


def __getattr__(name: str) -> Any:
    # An assay brings torch and transformers with it, which take seconds to import; its profile needs neither.
    if name != "assay":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from titer.assays.run import assay

    return assay
