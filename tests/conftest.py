"""For all tests: a machine that is shared makes examples slowly, which says nothing of what is tested."""

from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
