"""asyncpg through the pooler: the extended protocol with named statements, always."""

import asyncio
import datetime
import decimal
import io
import ssl
import uuid

import asyncpg

import common


async def connect(**options):
    where = dict(
        host=common.HOST,
        port=common.PORT,
        user=common.USER,
        password=common.PASSWORD,
        database=common.DATABASE,
    )
    return await asyncpg.connect(**{**where, **options})


async def inventory():
    conn = await connect(port=common.DIRECT_PORT)
    try:
        return [tuple(row) for row in await conn.fetch(common.INVENTORY)]
    finally:
        await conn.close()


async def connects_with_scram():
    conn = await connect()
    assert await conn.fetchval("SELECT current_user") == common.USER
    await conn.close()
    try:
        await connect(password="wrong")
    except asyncpg.InvalidPasswordError:
        return
    raise AssertionError("let in with a wrong password")


async def connects_with_tls():
    conn = await connect(ssl=ssl.create_default_context(cafile=common.TLS_CA))
    assert conn._transport.get_extra_info("ssl_object") is not None
    assert await conn.fetchval("SELECT repeat($1, 3000000)", "é") == "é" * 3000000
    # asyncpg's own CancelRequest is encrypted, too.
    await cancelled(conn)
    await conn.close()
    conn = await connect()
    assert conn._transport.get_extra_info("ssl_object") is None
    await conn.close()
    try:
        await connect(ssl=ssl.create_default_context(cafile=common.TLS_OTHER_CA))
    except ssl.SSLCertVerificationError:
        return
    raise AssertionError("a stranger's certificate was taken")


async def prepared_statements():
    one, two = await connect(), await connect()
    statement = await one.prepare("SELECT $1::int + 1, $2::timestamptz")
    when = await two.fetchval("SELECT now()")
    for n in range(20):
        assert tuple(await statement.fetchrow(n, when)) == (n + 1, when)
        assert await two.fetchval("SELECT $1::int * 2", n) == 2 * n
    async with one.transaction():
        async with two.transaction():
            # Both at once: on two servers.
            assert (await statement.fetchrow(1, when))[0] == 2
            assert await two.fetchval("SELECT $1::int * 2", 4) == 8
    # The pool's release sends RESET ALL, UNLISTEN and so on.
    await one.reset()
    assert (await statement.fetchrow(2, when))[0] == 3
    await one.close()
    await two.close()


async def transactions():
    conn = await connect()
    async with conn.transaction():
        await conn.execute("CREATE TEMP TABLE t (a int) ON COMMIT DROP")
        await conn.execute("INSERT INTO t VALUES ($1)", 1)
        try:
            async with conn.transaction():
                await conn.execute("INSERT INTO t VALUES ($1)", 2)
                await conn.fetch("SELECT 1/0")
        except asyncpg.DivisionByZeroError:
            pass
        assert await conn.fetchval("SELECT count(*) FROM t") == 1
    assert await conn.fetchval("SELECT to_regclass('t')") is None
    transaction = conn.transaction()
    await transaction.start()
    try:
        await conn.fetch("SELECT no_such_column")
    except asyncpg.UndefinedColumnError:
        pass
    try:
        await conn.fetch("SELECT 1")
        raise AssertionError("a failed transaction went on")
    except asyncpg.InFailedSQLTransactionError:
        pass
    await transaction.rollback()
    assert await conn.fetchval("SELECT 1") == 1
    await conn.close()


async def cursors():
    conn = await connect()
    async with conn.transaction():
        total = 0
        async for row in conn.cursor("SELECT generate_series(1, 1000)", prefetch=33):
            total += row[0]
        assert total == 500500
    await conn.close()


async def copy():
    conn = await connect()
    async with conn.transaction():
        await conn.execute("CREATE TEMP TABLE copied (a int, b text) ON COMMIT DROP")
        rows = [(n, f"row {n}") for n in range(5000)]
        assert await conn.copy_records_to_table("copied", records=rows) == "COPY 5000"
        out = io.BytesIO()
        assert await conn.copy_from_query("SELECT * FROM copied WHERE a < $1", 10, output=out) == "COPY 10"
        assert out.getvalue().count(b"\n") == 10
    try:
        await conn.copy_to_table("pg_class", source=io.BytesIO(b"bad\n" * 1000))
        raise AssertionError("bad data was copied")
    except asyncpg.PostgresError:
        pass
    assert await conn.fetchval("SELECT 1") == 1
    await conn.close()


async def executemany():
    conn = await connect()
    async with conn.transaction():
        await conn.execute("CREATE TEMP TABLE many (a int PRIMARY KEY) ON COMMIT DROP")
        await conn.executemany("INSERT INTO many VALUES ($1)", [(n,) for n in range(3000)])
        assert await conn.fetchval("SELECT count(*) FROM many") == 3000
        try:
            async with conn.transaction():
                await conn.executemany("INSERT INTO many VALUES ($1)", [(n,) for n in (9000, 1, 9001)])
        except asyncpg.UniqueViolationError:
            pass
        assert await conn.fetchval("SELECT count(*) FROM many") == 3000
    await conn.close()


async def cancelled(conn):
    """Cancels a task, and so its query, as soon as it runs."""
    observer = await connect(port=common.DIRECT_PORT)
    task = asyncio.create_task(conn.fetch("SELECT pg_sleep(600)"))
    while await observer.fetchval(common.ASLEEP) == 0:
        await asyncio.sleep(0.01)
    task.cancel()
    try:
        await task
        raise AssertionError("not cancelled")
    except asyncio.CancelledError:
        pass
    assert await conn.fetchval("SELECT 1") == 1
    while await observer.fetchval(common.ASLEEP) != 0:
        await asyncio.sleep(0.01)
    await observer.close()


async def cancels():
    conn = await connect()
    for _ in range(3):
        await cancelled(conn)
    try:
        await conn.fetch("SELECT pg_sleep(600)", timeout=0.2)
        raise AssertionError("not cancelled")
    except asyncio.TimeoutError:
        pass
    assert await conn.fetchval("SELECT 1") == 1
    await conn.close()


async def listens():
    listener, teller = await connect(), await connect()
    heard = asyncio.Queue()
    await listener.add_listener("News", lambda _conn, _pid, channel, payload: heard.put_nowait((channel, payload)))
    for number in range(3):
        transaction = teller.transaction()
        await transaction.start()
        await teller.execute("SELECT pg_notify('News', $1)", f"news {number}")
        await (transaction.rollback() if number == 1 else transaction.commit())
    assert await heard.get() == ("News", "news 0")
    assert await heard.get() == ("News", "news 2")
    assert await listener.fetchval("SELECT 1") == 1
    await listener.reset()
    await listener.close()
    await teller.close()


async def types():
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
    conn = await connect()
    row = await conn.fetchrow(
        """SELECT $1::int8, $2::numeric, $3::float8, $4::text, $5::bytea, $6::int4[], $7::timestamptz, $8::uuid,
           $9::text, $10::text""",
        *values,
    )
    assert tuple(row) == values, row
    # Types asyncpg looks up in the catalogs first.
    await conn.execute("DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('well', 'ill')")
    assert await conn.fetchval("SELECT array['ill', NULL]::mood[]") == ["ill", None]
    assert tuple(await conn.fetchval("SELECT ROW(1, 'x'::mood, NULL::int)".replace("'x'", "'well'"))) == (1, "well", None)
    await conn.execute("DROP TYPE mood")
    await conn.close()


async def large_results():
    conn = await connect()
    text = await conn.fetchval("SELECT $1::text || repeat('y', 10000000)", "x" * 10_000_000)
    assert text == "x" * 10_000_000 + "y" * 10_000_000
    rows = await conn.fetch("SELECT n, repeat('z', n % $1::int) FROM generate_series(0, 99999) n", 100)
    assert len(rows) == 100_000
    assert all(tuple(row) == (n, "z" * (n % 100)) for n, row in enumerate(rows))
    await conn.close()


async def changed_tables():
    """asyncpg keeps decoders by statement, and prepares again when the server says that they do not fit any more."""
    clients = [await connect() for _ in range(4)]
    beside = await connect(port=common.DIRECT_PORT)
    query = "SELECT * FROM changing"
    await beside.execute("DROP TABLE IF EXISTS changing; CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)")
    changes = (
        (beside, "ADD b text DEFAULT 'x'", {"a": 1, "b": "x"}),
        (clients[0], "ALTER a TYPE text", {"a": "1", "b": "x"}),
        (beside, "DROP a", {"b": "x"}),
        (clients[0], "RENAME b TO a", {"a": "x"}),
        (beside, "ALTER a TYPE varchar(3)", {"a": "x"}),
    )
    for who, change, expected in changes:
        # At once, so that several server connections have the statement.
        await asyncio.gather(*(client.fetch(query) for client in clients))
        await who.execute(f"ALTER TABLE changing {change}")
        for client in clients:
            assert dict(await client.fetchrow(query)) == expected, change
    # In a transaction it cannot be helped.
    await beside.execute("ALTER TABLE changing ADD c int")
    for client in clients:
        try:
            async with client.transaction():
                await client.fetch(query)
            raise AssertionError("not told of the change")
        except asyncpg.InvalidCachedStatementError:
            pass
        assert dict(await client.fetchrow(query)) == {"a": "x", "c": None}
    for client in clients:
        await client.close()
    await beside.execute("DROP TABLE changing")
    await beside.close()


async def pools():
    pool = await asyncpg.create_pool(
        host=common.HOST,
        port=common.PORT,
        user=common.USER,
        password=common.PASSWORD,
        database=common.DATABASE,
        min_size=5,
        max_size=20,
    )

    async def work(n):
        async with pool.acquire() as conn:
            return await conn.fetchval("SELECT $1::int + 1", n)

    assert await asyncio.gather(*(work(n) for n in range(300))) == list(range(1, 301))
    await pool.close()


async def stream_tables():
    conn = await connect()
    await conn.execute(common.TABLE)
    create = common.STREAM_TABLE.format(name="by_asyncpg")
    for _ in range(2):
        statement = await conn.prepare(create)
        await statement.fetch()
        assert statement.get_statusmsg() == "CREATE STREAM TABLE", statement.get_statusmsg()
        assert await conn.fetchval("SELECT count(*) FROM by_asyncpg") == 3
        try:
            await conn.fetch(create)
            raise AssertionError("created twice")
        except asyncpg.DuplicateTableError:
            pass
        statement = await conn.prepare("DROP STREAM TABLE by_asyncpg")
        await statement.fetch()
        assert statement.get_statusmsg() == "DROP STREAM TABLE", statement.get_statusmsg()
    before = await inventory()
    await conn.fetch(create)
    await conn.fetch("DROP STREAM TABLE by_asyncpg")
    assert await inventory() == before
    assert await conn.execute(create) == "CREATE STREAM TABLE"
    rows = await conn.fetch("SHOW STREAM TABLES")
    assert any("by_asyncpg" in [str(value) for value in row.values()] for row in rows), rows
    assert await conn.execute("DROP STREAM TABLE by_asyncpg") == "DROP STREAM TABLE"
    await conn.close()


async def stream_tables_rolled_back():
    conn = await connect()
    await conn.execute(common.TABLE)
    before = await inventory()
    transaction = conn.transaction()
    await transaction.start()
    await conn.fetch(common.STREAM_TABLE.format(name="rolled_back"))
    assert await conn.fetchval("SELECT count(*) FROM rolled_back") == 3
    await transaction.rollback()
    assert await inventory() == before
    # An error after it in a savepoint.
    async with conn.transaction():
        try:
            async with conn.transaction():
                await conn.execute(common.STREAM_TABLE.format(name="rolled_back"))
                await conn.fetch("SELECT 1/0")
        except asyncpg.DivisionByZeroError:
            pass
    assert await inventory() == before
    await conn.execute("DROP TABLE driver_orders")
    await conn.close()


common.run_async(
    connects_with_scram,
    connects_with_tls,
    prepared_statements,
    transactions,
    cursors,
    copy,
    executemany,
    cancels,
    changed_tables,
    pools,
    listens,
    types,
    large_results,
    stream_tables,
    stream_tables_rolled_back,
)
