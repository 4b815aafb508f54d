"""What a run records about its machine and command line: passwords of no form are in it."""

import pytest

from jobs.connection import mask
from jobs.environment import mask_argv, mask_passwords

NAMES = ("password", "ssl_password", "sslpassword", "passwd", "db_passwd", "pwd", "PASSWORD", "sslPassword", "Pwd")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("url", [
    "rediss://host:1/0?{}=hush", "rediss://host:1/0?db=1&{}=hush#hush&ssl_ca_certs=ca.pem",
    "postgresql+psycopg://me@host/name?sslmode=verify-full&{}=hush",
])
def test_a_password_among_the_parameters_of_a_url_is_masked(url: str, name: str) -> None:
    whole, masked = url.format(name), url.format(name).replace("hush#hush", "hush").replace("hush", "***")

    assert mask_passwords(whole) == masked
    assert mask_argv(("diptych", "--db", whole)) == ("diptych", "--db", masked)


@pytest.mark.parametrize("name", NAMES)
def test_a_password_is_masked_where_an_address_is_named(name: str) -> None:
    assert mask(f"rediss://host:1/0?{name}=hush&db=1") == f"rediss://host:1/0?{name}=***&db=1"


def test_what_is_no_password_stays() -> None:
    words = ("--prompt", "Is password=x in the picture? And pwd = y?", "redis://host/0?passwords=1&db=2",
             "rediss://host/0?ssl_ca_certs=pwd/ca.pem")

    assert mask_argv(words) == words
