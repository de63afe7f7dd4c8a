"""Runs migrations over the engine that `Database` hands in; what Alembic's own command line would want is not needed."""

from alembic import context

from titer.service.tables import Base

engine = context.config.attributes["engine"]
with engine.connect().execution_options(titer_writes=True) as connection:
    # SQLite cannot alter most of a table: it is made anew and filled.
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
