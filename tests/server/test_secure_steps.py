"""The coordinator's steps of a slot, one by one, with hospitals that train nothing."""
