"""What the Python programs share: where to connect, what to ask, and what CREATE STREAM TABLE must (not) leave."""

import asyncio
import os
import sys
import traceback

HOST = os.environ["PGHOST"]
PORT = int(os.environ["PGPORT"])
DIRECT_PORT = int(os.environ["DIRECT_PORT"])
USER = os.environ["PGUSER"]
PASSWORD = os.environ["PGPASSWORD"]
DATABASE = os.environ["PGDATABASE"]
TLS_CA = os.environ["TLS_CA"]
TLS_OTHER_CA = os.environ["TLS_OTHER_CA"]

# Whether a query asleep is there to be cancelled; a program runs one at a time.
ASLEEP = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'active' AND wait_event = 'PgSleep'
"""

# Every object of the database that is not the system's own, and every row of our catalog.
INVENTORY = """
    SELECT kind, name FROM (
        SELECT 'relation' AS kind, c.oid::regclass::text AS name, relnamespace AS schema FROM pg_class c
        UNION ALL SELECT 'function', p.oid::regprocedure::text, pronamespace FROM pg_proc p
        UNION ALL SELECT 'type', t.oid::regtype::text, typnamespace FROM pg_type t
        UNION ALL SELECT 'trigger', tgrelid::regclass || '.' || tgname, relnamespace
            FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid
        UNION ALL SELECT 'schema', nspname, oid FROM pg_namespace
    ) AS object
    JOIN pg_namespace n ON n.oid = schema
    WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
    ORDER BY 1, 2
"""

STREAM_TABLE = """
    CREATE STREAM TABLE {name} AS
    SELECT region, count(*) AS orders, sum(amount) AS revenue
    FROM driver_orders GROUP BY region
"""

TABLE = """
    DROP TABLE IF EXISTS driver_orders CASCADE;
    CREATE TABLE driver_orders (id int PRIMARY KEY, region text, amount numeric);
    INSERT INTO driver_orders SELECT n, 'r' || n % 3, n FROM generate_series(1, 30) n;
"""


def run(tests):
    """Runs (name, callable) pairs, prints a line for each, and ends the process."""
    failed = 0
    for name, test in tests:
        try:
            test()
            print(f"ok {name}")
        except Exception:  # noqa: BLE001 - every failure is to be shown
            failed += 1
            print(f"FAILED {name}")
            traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
    sys.exit(1 if failed else 0)


def run_async(*tests):
    """As run, for coroutines, each within a minute."""
    run(
        [
            (test.__name__, lambda test=test: asyncio.run(asyncio.wait_for(test(), 60)))
            for test in tests
        ]
    )
