"""Rows → statistics → claims, tables, figures: from `results/*.jsonl` and the paper's CSVs, without torch."""
