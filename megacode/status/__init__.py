"""F9: where a run is, how it fares, and where its time went. Never imports torch."""
