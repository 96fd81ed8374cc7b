"""psycopg 3 through the pooler."""

import datetime
import decimal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg import errors, sql
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

import common


def connect(**options):
    return psycopg.connect(
        host=common.HOST,
        port=common.PORT,
        user=common.USER,
        password=common.PASSWORD,
        dbname=common.DATABASE,
        **options,
    )


def direct():
    return psycopg.connect(
        host=common.HOST,
        port=common.DIRECT_PORT,
        user=common.USER,
        password=common.PASSWORD,
        dbname=common.DATABASE,
        autocommit=True,
    )


def inventory():
    with direct() as conn:
        return conn.execute(common.INVENTORY).fetchall()


def connects_with_scram():
    with connect() as conn:
        assert conn.execute("SELECT current_user").fetchone() == (common.USER,)
    try:
        psycopg.connect(
            host=common.HOST, port=common.PORT, user=common.USER, password="wrong", dbname=common.DATABASE
        )
    except psycopg.OperationalError as error:
        assert "password authentication failed" in str(error), error
    else:
        raise AssertionError("let in with a wrong password")


def connects_with_tls():
    with connect(sslmode="verify-full", sslrootcert=common.TLS_CA, autocommit=True) as conn:
        assert conn.pgconn.ssl_in_use
        text = conn.execute("SELECT repeat(%s, 3000000)", ("é",)).fetchone()[0]
        assert text == "é" * 3000000
        cancelled(conn)
    with connect() as conn:
        assert not conn.pgconn.ssl_in_use
    try:
        connect(sslmode="verify-full", sslrootcert=common.TLS_OTHER_CA)
    except psycopg.OperationalError as error:
        assert "SSL error" in str(error), error
    else:
        raise AssertionError("a stranger's certificate was taken")


def prepared_statements():
    with connect(autocommit=True) as one, connect(autocommit=True) as two:
        for n in range(20):
            for conn in (one, two):
                # More than prepare_threshold times, then by name.
                row = conn.execute("SELECT %s::int + 1, %s::text", (n, "é")).fetchone()
                assert row == (n + 1, "é")
            row = one.execute("SELECT %b::int8 * 2", (n,), prepare=True).fetchone()
            assert row == (n * 2,)


def many_prepared_statements():
    with connect(autocommit=True) as conn:
        conn.prepare_threshold = 0
        # Evicts its own, by Close or DEALLOCATE.
        conn.prepared_max = 5
        for n in range(40):
            assert conn.execute(f"SELECT %s + {n % 13}", (1,)).fetchone() == (1 + n % 13,)


def transactions():
    with connect() as conn:
        conn.execute("CREATE TEMP TABLE t (a int) ON COMMIT DROP")
        conn.execute("INSERT INTO t VALUES (1)")
        with conn.transaction():
            conn.execute("INSERT INTO t VALUES (2)")
        try:
            with conn.transaction():
                conn.execute("INSERT INTO t VALUES (3)")
                conn.execute("SELECT 1/0")
        except errors.DivisionByZero:
            pass
        assert conn.execute("SELECT count(*) FROM t").fetchone() == (2,)
        conn.rollback()
        assert conn.execute("SELECT to_regclass('t')").fetchone() == (None,)


def errors_in_transactions():
    with connect() as conn:
        conn.execute("SELECT 1")
        try:
            conn.execute("SELECT no_such_column")
        except errors.UndefinedColumn as error:
            assert error.diag.statement_position == "8"
        try:
            conn.execute("SELECT 1")
            raise AssertionError("a failed transaction went on")
        except errors.InFailedSqlTransaction:
            pass
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        conn.rollback()
        assert conn.execute("SELECT 1").fetchone() == (1,)


def copy():
    with connect() as conn:
        conn.execute("CREATE TEMP TABLE copied (a int, b text) ON COMMIT DROP")
        with conn.cursor().copy("COPY copied FROM STDIN") as copying:
            for n in range(5000):
                copying.write_row((n, f"row {n}"))
        with conn.cursor().copy("COPY (SELECT * FROM copied ORDER BY a) TO STDOUT") as copying:
            rows = list(copying.rows())
        assert len(rows) == 5000 and rows[4999] == ("4999", "row 4999")
        with conn.cursor().copy("COPY copied FROM STDIN (FORMAT binary)") as copying:
            copying.set_types(["int4", "text"])
            copying.write_row((-1, "binary"))
        assert conn.execute("SELECT count(*) FROM copied").fetchone() == (5001,)
        # With parameters: the extended protocol.
        with conn.cursor().copy("COPY (SELECT generate_series(1, %s)) TO STDOUT", (3,)) as copying:
            assert [row[0] for row in copying.rows()] == ["1", "2", "3"]
        try:
            with conn.cursor().copy("COPY copied FROM STDIN") as copying:
                for _ in range(1000):
                    copying.write("not a number\trow\n")
        except errors.InvalidTextRepresentation:
            pass
        else:
            raise AssertionError("bad data was copied")
        conn.rollback()
        try:
            with conn.cursor().copy("COPY (SELECT 1/0) TO STDOUT") as copying:
                list(copying)
        except errors.DivisionByZero:
            conn.rollback()
        assert conn.execute("SELECT 1").fetchone() == (1,)


def pipelines():
    with connect(autocommit=True) as conn:
        with conn.pipeline():
            cursors = [conn.execute("SELECT %s::int", (n,)) for n in range(100)]
        assert [cursor.fetchone() for cursor in cursors] == [(n,) for n in range(100)]
        try:
            with conn.pipeline() as pipeline:
                conn.execute("SELECT 1")
                conn.execute("SELECT 1/0")
                conn.execute("SELECT 2")
                pipeline.sync()
        except errors.DivisionByZero:
            pass
        else:
            raise AssertionError("no error")
        with conn.pipeline() as pipeline:
            first = conn.execute("SELECT 1")
            # Fetching within a pipeline sends a Flush or Sync.
            assert first.fetchone() == (1,)
            with conn.transaction():
                second = conn.execute("SELECT %s::text", ("x",), prepare=True)
            assert second.fetchone() == ("x",)
    with connect() as conn, conn.pipeline():
        conn.execute("CREATE TEMP TABLE piped (a int) ON COMMIT DROP")
        conn.cursor().executemany("INSERT INTO piped VALUES (%s)", [(n,) for n in range(1000)])
        assert conn.execute("SELECT count(*) FROM piped").fetchone() == (1000,)


def server_cursors():
    with connect() as conn:
        with conn.cursor("named") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT generate_series(1, 1000)")
            assert sum(row[0] for row in cursor) == 500500


def streams():
    with connect(autocommit=True) as conn:
        rows = conn.cursor().stream("SELECT generate_series(1, %s), repeat('x', 1000)", (5000,))
        assert sum(1 for _ in rows) == 5000


def cancelled(conn):
    """Cancels a query of conn as soon as it runs."""

    def cancel():
        with direct() as observer:
            while observer.execute(common.ASLEEP).fetchone() == (0,):
                time.sleep(0.01)
        conn.cancel_safe()

    with ThreadPoolExecutor() as executor:
        cancelling = executor.submit(cancel)
        try:
            conn.execute("SELECT pg_sleep(600)")
            raise AssertionError("not cancelled")
        except errors.QueryCanceled:
            pass
        cancelling.result()
    assert conn.execute("SELECT 1").fetchone() == (1,)


def cancels():
    with connect(autocommit=True) as conn, connect(autocommit=True) as other:
        for _ in range(3):
            cancelled(conn)
            assert other.execute("SELECT 2").fetchone() == (2,)


def many_clients():
    with ConnectionPool(
        kwargs=dict(
            host=common.HOST,
            port=common.PORT,
            user=common.USER,
            password=common.PASSWORD,
            dbname=common.DATABASE,
            prepare_threshold=1,
        ),
        min_size=10,
        max_size=10,
        open=True,
    ) as pool:

        def work(n):
            with pool.connection() as conn:
                own = conn.execute(f"SELECT %s::text || ' {n % 7}'", ("own",)).fetchone()
                assert own == (f"own {n % 7}",), own
                try:
                    with conn.transaction():
                        conn.execute("SELECT 1 / %s::int", (n % 3,))
                except errors.DivisionByZero:
                    assert n % 3 == 0
                return conn.execute("SELECT %s::int + 1", (n,)).fetchone()[0]

        with ThreadPoolExecutor(20) as executor:
            assert list(executor.map(work, range(300))) == list(range(1, 301))


def listens():
    with connect(autocommit=True) as listener, connect() as teller:
        listener.execute('LISTEN "News"')
        for number in range(3):
            teller.execute("SELECT pg_notify('News', %s)", (f"news {number}",))
            teller.rollback() if number == 1 else teller.commit()
        heard = [n for n in listener.notifies(timeout=60, stop_after=2)]
        assert [(n.channel, n.payload) for n in heard] == [("News", "news 0"), ("News", "news 2")], heard
        listener.execute("UNLISTEN *")
        teller.execute('NOTIFY "News"')
        teller.commit()
        assert listener.execute("SELECT 1").fetchone() == (1,)
        assert list(listener.notifies(timeout=0)) == []


def types():
    values = (
        -(2**63),
        decimal.Decimal("12345678901234567890.0012300"),
        float("inf"),
        "naïve \U0001f418",
        b"\0\xff",
        [1, None, 3],
        datetime.datetime(2024, 2, 29, 12, 30, 0, 123456, datetime.timezone.utc),
        uuid.UUID(int=5),
        None,
        "",
    )
    query = "SELECT %s::int8, %s::numeric, %s::float8, %s::text, %s::bytea, %s::int4[], %s::timestamptz, %s, %s::text, %s"
    with connect() as conn:
        for prepare in (False, True):
            for binary in (False, True):
                row = conn.execute(query, values, prepare=prepare, binary=binary).fetchone()
                assert row == values, (binary, row)
                assert str(row[1]) == str(values[1])
        assert conn.execute("SELECT %s", (Jsonb({"a": [1, None]}),)).fetchone() == ({"a": [1, None]},)


def large_results():
    with connect() as conn:
        for binary in (False, True):
            text = conn.execute(
                "SELECT %s::text || repeat('y', 10000000)", ("x" * 10_000_000,), binary=binary
            ).fetchone()[0]
            assert text == "x" * 10_000_000 + "y" * 10_000_000
        rows = conn.execute("SELECT n, repeat('z', n %% %s) FROM generate_series(0, 99999) n", (100,))
        assert all(row == (n, "z" * (n % 100)) for n, row in enumerate(rows))
        assert rows.rowcount == 100_000


def notices():
    with connect(autocommit=True) as conn:
        heard = []
        conn.add_notice_handler(lambda diag: heard.append(diag.message_primary))
        conn.execute("DO $$ BEGIN RAISE NOTICE 'told'; END $$")
        assert heard == ["told"], heard


def stream_table_in_the_extended_protocol():
    with connect(autocommit=True) as conn:
        conn.execute(common.TABLE)
        for binary in (False, True):
            conn.execute("SELECT 1", prepare=True)
            cursor = conn.execute(
                common.STREAM_TABLE.format(name="by_psycopg"), prepare=True, binary=binary
            )
            assert cursor.statusmessage == "CREATE STREAM TABLE", cursor.statusmessage
            rows = conn.execute("SELECT * FROM by_psycopg ORDER BY region").fetchall()
            assert [row[:2] for row in rows] == [("r0", 10), ("r1", 10), ("r2", 10)], rows
            try:
                conn.execute(common.STREAM_TABLE.format(name="by_psycopg"), prepare=True)
                raise AssertionError("created twice")
            except errors.DuplicateTable:
                pass
            cursor = conn.execute("DROP STREAM TABLE by_psycopg", prepare=True)
            assert cursor.statusmessage == "DROP STREAM TABLE", cursor.statusmessage
        before = inventory()
        conn.execute(common.STREAM_TABLE.format(name="by_psycopg"))
        conn.execute("DROP STREAM TABLE by_psycopg")
        assert inventory() == before


def stream_table_rolled_back():
    with connect() as conn:
        conn.execute(common.TABLE)
        conn.commit()
        before = inventory()
        conn.execute(common.STREAM_TABLE.format(name="rolled_back"), prepare=True)
        assert conn.execute("SELECT count(*) FROM rolled_back").fetchone() == (3,)
        conn.rollback()
        assert inventory() == before
        # DROP comes back too.
        conn.execute(common.STREAM_TABLE.format(name="kept"))
        conn.commit()
        before = inventory()
        conn.execute("DROP STREAM TABLE kept", prepare=True)
        assert conn.execute("SELECT to_regclass('kept')").fetchone() == (None,)
        conn.rollback()
        assert inventory() == before
        conn.execute("INSERT INTO driver_orders VALUES (31, 'new', 1)")
        conn.commit()
        deadline = time.monotonic() + 10
        while conn.execute("SELECT count(*) FROM kept WHERE region = 'new'").fetchone() != (1,):
            assert time.monotonic() < deadline, "kept does not follow its source"
            conn.commit()
            time.sleep(0.02)
        conn.execute("DROP STREAM TABLE kept")
        conn.commit()


def stream_table_in_a_pipeline():
    with connect() as conn:
        conn.execute(common.TABLE)
        conn.commit()
        before = inventory()
        with conn.pipeline():
            conn.execute("SELECT 1")
            conn.execute(common.STREAM_TABLE.format(name="piped"))
            count = conn.execute("SELECT count(*) FROM piped")
            conn.execute("DROP STREAM TABLE piped")
        assert count.fetchone() == (3,)
        conn.commit()
        assert inventory() == before
        try:
            with conn.pipeline():
                conn.execute(common.STREAM_TABLE.format(name="piped"))
                conn.execute("SELECT 1/0")
        except errors.DivisionByZero:
            conn.rollback()
        assert inventory() == before
    with direct() as conn:
        conn.execute(sql.SQL("DROP TABLE {} CASCADE").format(sql.Identifier("driver_orders")))


common.run(
    [
        (test.__name__, test)
        for test in (
            connects_with_scram,
            connects_with_tls,
            prepared_statements,
            many_prepared_statements,
            transactions,
            errors_in_transactions,
            copy,
            pipelines,
            server_cursors,
            streams,
            cancels,
            many_clients,
            listens,
            types,
            large_results,
            notices,
            stream_table_in_the_extended_protocol,
            stream_table_rolled_back,
            stream_table_in_a_pipeline,
        )
    ]
)
