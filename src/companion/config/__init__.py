"""Every number of a run, in frozen, validated models. Results hash the values that they read, never these files."""

from companion.config.arms import ARMS
from companion.config.profile import Profile, load_profile

__all__ = ["ARMS", "Profile", "load_profile"]
