"""Evaluations: their runs, which servers claim, the result of every row, and what runs measured of versions."""
