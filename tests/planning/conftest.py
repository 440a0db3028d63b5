"""Configs and schedules in memory: see tests/schedules.py."""

from tests.schedules import clocks_of, make_config, on_one_gpu, place, rates_of, schedule_of

__all__ = ["clocks_of", "make_config", "on_one_gpu", "place", "rates_of", "schedule_of"]
