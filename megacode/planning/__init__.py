"""F6: the plan of a run from its config and data sets: as an object, as JSON, as tables. Without torch."""
