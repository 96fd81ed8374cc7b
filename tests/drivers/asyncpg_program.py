"""asyncpg through the pooler: the extended protocol with named statements, always."""

import asyncio
import io

import asyncpg

import common


async def connect(**options):
    return await asyncpg.connect(
        host=common.HOST,
        port=common.PORT,
        user=common.USER,
        password=common.PASSWORD,
        database=common.DATABASE,
        **options,
    )


async def inventory():
    conn = await asyncpg.connect(
        host=common.HOST,
        port=common.DIRECT_PORT,
        user=common.USER,
        password=common.PASSWORD,
        database=common.DATABASE,
    )
    try:
        return [tuple(row) for row in await conn.fetch(common.INVENTORY)]
    finally:
        await conn.close()


async def connects_with_scram():
    conn = await connect()
    assert await conn.fetchval("SELECT current_user") == common.USER
    await conn.close()
    try:
        await asyncpg.connect(
            host=common.HOST,
            port=common.PORT,
            user=common.USER,
            password="wrong",
            database=common.DATABASE,
        )
    except asyncpg.InvalidPasswordError:
        return
    raise AssertionError("let in with a wrong password")


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


async def cancels():
    conn = await connect()
    try:
        await conn.fetch("SELECT pg_sleep(30)", timeout=0.5)
        raise AssertionError("not cancelled")
    except asyncio.TimeoutError:
        pass
    assert await conn.fetchval("SELECT 1") == 1
    await conn.close()


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


async def limited(test):
    await asyncio.wait_for(test(), 60)


common.run(
    [
        (test.__name__, lambda test=test: asyncio.run(limited(test)))
        for test in (
            connects_with_scram,
            prepared_statements,
            transactions,
            cursors,
            copy,
            executemany,
            cancels,
            pools,
            stream_tables,
            stream_tables_rolled_back,
        )
    ]
)
