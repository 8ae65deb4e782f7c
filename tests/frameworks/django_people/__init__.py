"""The users of the Django app: as a team would have them, with the tenant as a column."""
