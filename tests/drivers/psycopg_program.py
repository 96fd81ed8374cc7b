"""psycopg 3 through the pooler."""

import threading
import time

import psycopg
from psycopg import errors, sql

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


def cancels():
    with connect(autocommit=True) as conn, connect(autocommit=True) as other:
        began = time.monotonic()
        timer = threading.Timer(0.5, conn.cancel)
        timer.start()
        try:
            conn.execute("SELECT pg_sleep(30)")
            raise AssertionError("not cancelled")
        except errors.QueryCanceled:
            pass
        timer.join()
        assert time.monotonic() - began < 15
        assert conn.execute("SELECT 1").fetchone() == (1,)
        assert other.execute("SELECT 1").fetchone() == (1,)


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
            prepared_statements,
            many_prepared_statements,
            transactions,
            errors_in_transactions,
            copy,
            pipelines,
            server_cursors,
            streams,
            cancels,
            notices,
            stream_table_in_the_extended_protocol,
            stream_table_rolled_back,
            stream_table_in_a_pipeline,
        )
    ]
)
