"""Run by Alembic for every upgrade, on the connection that `upgrade_schema` hands over."""

from __future__ import annotations

from alembic import context

from llama_deploy.state_stores.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
