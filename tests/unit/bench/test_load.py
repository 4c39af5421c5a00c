"""What is read from the reports of wrk and h2load."""

from __future__ import annotations

import pytest

from tests.bench.load import LoadError, parse_h2load, parse_h2load_log, parse_wrk

WRK = """Running 2s test @ https://127.0.0.1:8443/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     6.10ms    2.02ms  40.10ms   90.00%
    Req/Sec     5.20k   300.00     5.60k    80.00%
  10400 requests in 2.00s, 1.90MB read
Requests/sec:   5200.00
Transfer/sec:      0.95MB
"""

H2LOAD = """finished in 3.05s, 678.33 req/s, 12.00KB/s
requests: 2035 total, 2036 started, 2036 done, 2035 succeeded, 1 failed, 0 errored, 0 timeout
status codes: 2035 2xx, 0 3xx, 1 4xx, 0 5xx
"""


def test_wrk_totals() -> None:
    done = parse_wrk(WRK)
    assert (done.requests, done.seconds, done.refused) == (10400, 2.0, 0)
    assert done.per_s == 5200.0


def test_wrk_counts_refusals_and_lost_connections() -> None:
    text = WRK.replace(
        "Requests/sec",
        "  Socket errors: connect 1, read 2, write 3, timeout 4\n"
        "  Non-2xx or 3xx responses: 30\nRequests/sec",
    )
    assert parse_wrk(text).refused == 40


def test_wrk_tells_the_time_in_minutes() -> None:
    assert parse_wrk(WRK.replace("in 2.00s", "in 1.50m")).seconds == 90.0


def test_h2load_rate_leaves_the_warm_up_out() -> None:
    done = parse_h2load(H2LOAD)
    assert done.per_s == pytest.approx(678.33)
    assert (done.requests, done.refused) == (2035, 1)


def test_h2load_log_holds_latencies_of_good_answers() -> None:
    paced = parse_h2load_log("1\t200\t150\n2\t200\t90\n3\t401\t10\n4\t-1\t0\n")
    assert paced.latencies_us == [150.0, 90.0]
    assert paced.refused == 2


@pytest.mark.parametrize("parse", [parse_wrk, parse_h2load])
def test_a_report_without_totals_is_an_error(parse: type) -> None:
    with pytest.raises(LoadError, match="no totals"):
        parse("unable to connect")
