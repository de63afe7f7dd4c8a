"""Rows of validation files count in a quota."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add their column; jobs that came before have none."""
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("validation_rows", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Remove it."""
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("validation_rows")
