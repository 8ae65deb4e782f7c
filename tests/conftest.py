"""What holds for every test: the servers' fixtures, and checks that no test can forget."""

pytest_plugins = ["tests.services.fixtures"]
