"""Evaluation: rows to answer, graders of the answers, and what both say of one model against another.

    from tunery.plugins.evals.graders import read_graders

    (grader,) = read_graders([{"type": "string_check", "name": "exact", "operation": "eq",
                               "input": "{{sample.output_text}}", "reference": "{{item.reference}}"}])
    grader.grade({"item": {"reference": "Paris"}, "sample": {"output_text": "Paris"}}).score  # 1.0

Nothing here asks a model; who does is in `tunery.gateway.evals`. Importing it imports no torch, and no code of a user is
ever executed.
"""
