"""F6: a run's plan from its config and its data sets: as an object, as JSON, as tables. Without torch."""
