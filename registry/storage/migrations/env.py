"""Run the migrations on the connection that the registry passes in."""

from __future__ import annotations

from alembic import context

from tunery.registry.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
