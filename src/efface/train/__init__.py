"""The one training engine, parameter scopes and the reference cache."""
