"""Record which data files each version was trained on, so that the versions of a file can be looked up."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table, and fill it from the manifests of the versions that are here."""
    made = op.create_table(
        "version_data",
        sa.Column("adapter", sa.String(130), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, index=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("adapter", "number", "position"),
        sa.ForeignKeyConstraint(["adapter", "number"], ["versions.adapter", "versions.number"], ondelete="CASCADE"),
    )
    versions = sa.table("versions", sa.column("adapter"), sa.column("number"), sa.column("manifest", sa.JSON))
    stored = op.get_bind().execute(sa.select(versions)).all()
    rows = [row for adapter, number, manifest in stored for row in _rows(adapter, number, manifest)]
    if rows:
        op.bulk_insert(made, rows)


def _rows(adapter: str, number: int, manifest: Any) -> list[dict[str, Any]]:
    """The files a manifest names; the last was held out where it says so."""
    entries = manifest.get("data") if isinstance(manifest, dict) else None
    files = [entry for entry in entries if _is_file(entry)] if isinstance(entries, list) else []
    last = len(files) - 1 if files and manifest.get("validation") is True else len(files)
    return [
        {
            "adapter": adapter,
            "number": number,
            "position": index,
            "sha256": file["sha256"],
            "name": str(file.get("name", "")),
            "role": "train" if index < last else "held-out",
        }
        for index, file in enumerate(files)
    ]


def _is_file(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and len(entry["sha256"]) == 64
