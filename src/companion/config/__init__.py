"""Every number of a run, in one tree of frozen, validated models; nothing here is part of a result's code hash.

Values are hashed with the results that read them, so the files that declare them need not be.
"""

from companion.config.arms import ARMS
from companion.config.profile import Profile, load_profile

__all__ = ["ARMS", "Profile", "load_profile"]
