"""Who loads which layers, and how long an answer takes then: pure functions of the picture."""

from .place import place
from .quantities import Device, Job, Link, Links, Plan, Run

__all__ = ["Device", "Job", "Link", "Links", "Plan", "Run", "place"]
