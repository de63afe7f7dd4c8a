"""Runs migrations over the engine that `Database` hands in; what Alembic's own command line would want is not needed."""

from alembic import context

from titer.service.tables import Base

ALONE = 74837
"""What whoever migrates a PostgreSQL database holds until it is done: a server and its workers may start at once."""

engine = context.config.attributes["engine"]
with engine.connect().execution_options(titer_writes=True) as connection:
    if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ALONE})")
    # SQLite cannot alter most of a table: it is made anew and filled.
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
