"""What every test gets: the marker ``behaviour`` and its report. Fixtures of one kind of test stand beside them."""

pytest_plugins = ["tests.support.plugin", "tests.support.fixtures", "pytester"]
