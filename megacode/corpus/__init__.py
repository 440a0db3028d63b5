"""The data engine: from raw dumps to audited sources, by a recipe whose every decision is counted."""
