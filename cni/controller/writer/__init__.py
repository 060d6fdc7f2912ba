"""Brings OVN's northbound database to what the translators want: compare by id, commit in groups."""
