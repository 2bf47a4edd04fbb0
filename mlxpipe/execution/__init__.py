"""Running a spec, and the record that a run leaves."""
