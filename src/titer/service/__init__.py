"""An OpenAI-compatible fine-tuning service on local weights: `titer serve`, `titer worker`.

The database and the artefact store are all that the parts share, so that they may run on different machines: the API (`api`)
writes jobs down, workers (`worker`) take them, and the console is pages of the same application.
"""

from importlib.util import find_spec

from titer.errors import TiterError

NEEDED = ("alembic", "fastapi", "fsspec", "prometheus_client", "psycopg", "python_multipart", "sqlalchemy", "uvicorn")
"""What the extra `serve` brings."""

if absent := [name for name in NEEDED if find_spec(name) is None]:
    raise TiterError(
        f"The service needs packages that are not installed: {', '.join(absent)}.",
        "Install them: pip install 'titer[serve]'",
    )
