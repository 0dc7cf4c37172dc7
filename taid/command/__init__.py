"""The command `taid`: distil one student, or compare several, from names and paths."""
