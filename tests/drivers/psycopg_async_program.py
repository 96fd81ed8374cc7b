"""psycopg 3's asynchronous connections through the pooler: another cancel, another way to wait, real pipelines."""

import asyncio

import psycopg
from psycopg import errors
from psycopg_pool import AsyncConnectionPool

import common

WHERE = dict(
    host=common.HOST,
    port=common.PORT,
    user=common.USER,
    password=common.PASSWORD,
    dbname=common.DATABASE,
)


async def connect(**options):
    return await psycopg.AsyncConnection.connect(**{**WHERE, **options})


async def row(conn, query, *parameters, **options):
    cursor = await conn.execute(query, parameters or None, **options)
    return await cursor.fetchone()


async def connects_with_scram():
    async with await connect() as conn:
        assert await row(conn, "SELECT current_user") == (common.USER,)
    try:
        await connect(password="wrong")
    except psycopg.OperationalError as error:
        assert "password authentication failed" in str(error), error
    else:
        raise AssertionError("let in with a wrong password")


async def cancelled(conn, cancel):
    """Cancels a query of conn as soon as it runs."""

    async def canceller():
        async with await connect(port=common.DIRECT_PORT, autocommit=True) as observer:
            while await row(observer, common.ASLEEP) == (0,):
                await asyncio.sleep(0.01)
        await cancel()

    cancelling = asyncio.create_task(canceller())
    try:
        await conn.execute("SELECT pg_sleep(600)")
        raise AssertionError("not cancelled")
    except errors.QueryCanceled:
        pass
    await cancelling
    assert await row(conn, "SELECT 1") == (1,)


async def cancels():
    async with await connect(autocommit=True) as conn:
        await cancelled(conn, conn.cancel_safe)
        # A task that is cancelled cancels its query.
        task = asyncio.create_task(conn.execute("SELECT pg_sleep(600)"))
        async with await connect(port=common.DIRECT_PORT, autocommit=True) as observer:
            while await row(observer, common.ASLEEP) == (0,):
                await asyncio.sleep(0.01)
        task.cancel()
        try:
            await task
            raise AssertionError("not cancelled")
        except asyncio.CancelledError:
            pass
        assert await row(conn, "SELECT 1") == (1,)


async def connects_with_tls():
    async with await connect(sslmode="verify-full", sslrootcert=common.TLS_CA, autocommit=True) as conn:
        assert conn.pgconn.ssl_in_use
        assert await row(conn, "SELECT repeat(%s, 3000000)", "é") == ("é" * 3000000,)
        await cancelled(conn, conn.cancel_safe)
    try:
        await connect(sslmode="verify-full", sslrootcert=common.TLS_OTHER_CA)
    except psycopg.OperationalError as error:
        assert "SSL error" in str(error), error
    else:
        raise AssertionError("a stranger's certificate was taken")


async def many_clients():
    async def work(n):
        async with await connect(prepare_threshold=0) as conn:
            for round in range(10):
                async with conn.transaction():
                    assert await row(conn, "SELECT %s::int + %s::int", n, round) == (n + round,)
                    assert await row(conn, f"SELECT %s::text || ' {n}'", "own") == (f"own {n}",)
                try:
                    async with conn.transaction():
                        await conn.execute("SELECT 1/0")
                except errors.DivisionByZero:
                    pass

    await asyncio.gather(*(work(n) for n in range(15)))


async def pipelines():
    async with await connect(autocommit=True) as conn:
        async with conn.pipeline():
            cursors = [await conn.execute("SELECT %s::int", (n,), prepare=True) for n in range(200)]
        assert [await cursor.fetchone() for cursor in cursors] == [(n,) for n in range(200)]
        try:
            async with conn.pipeline() as pipeline:
                await conn.execute("SELECT 1")
                await conn.execute("SELECT 1/0")
                await conn.execute("SELECT 2")
                await pipeline.sync()
            raise AssertionError("no error")
        except errors.DivisionByZero:
            pass
        assert await row(conn, "SELECT 3") == (3,)
    # Pipelines of several clients at once, each a transaction.
    async with await connect() as conn:
        await conn.execute("DROP TABLE IF EXISTS piped")
        await conn.execute("CREATE TABLE piped (a int)")

    async def pipe(n):
        async with await connect() as conn, conn.pipeline():
            await conn.cursor().executemany("INSERT INTO piped VALUES (%s)", [(n,)] * 500)
            count = await row(conn, "SELECT count(*) FROM piped WHERE a = %s", n)
            assert count == (500,), count

    await asyncio.gather(*(pipe(n) for n in range(8)))
    async with await connect() as conn:
        assert await row(conn, "SELECT count(*), count(DISTINCT a) FROM piped") == (4000, 8)
        await conn.execute("DROP TABLE piped")


async def copies():
    async with await connect() as conn:
        await conn.execute("CREATE TEMP TABLE copied (a int, b text) ON COMMIT DROP")
        async with conn.cursor().copy("COPY copied FROM STDIN") as copy:
            for n in range(5000):
                await copy.write_row((n, None if n % 2 else f"row\t{n}"))
        async with conn.cursor().copy("COPY (SELECT * FROM copied ORDER BY a) TO STDOUT") as copy:
            copy.set_types(["int4", "text"])
            rows = [row async for row in copy.rows()]
        assert rows == [(n, None if n % 2 else f"row\t{n}") for n in range(5000)]
        try:
            async with conn.cursor().copy("COPY copied FROM STDIN") as copy:
                await copy.write("1\tx\n")
                raise KeyError("the client's own")
        except KeyError:
            pass
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        await conn.rollback()
        assert await row(conn, "SELECT 1") == (1,)


async def listens():
    async with await connect(autocommit=True) as listener, await connect() as teller:
        await listener.execute('LISTEN "News"')
        for number in range(3):
            await teller.execute("SELECT pg_notify('News', %s)", (f"news {number}",))
            await (teller.rollback() if number == 1 else teller.commit())
        heard = [n async for n in listener.notifies(timeout=60, stop_after=2)]
        assert [(n.channel, n.payload) for n in heard] == [("News", "news 0"), ("News", "news 2")], heard


async def large_results():
    async with await connect() as conn:
        text = (await row(conn, "SELECT %s::text || repeat('y', 10000000)", "x" * 10_000_000))[0]
        assert text == "x" * 10_000_000 + "y" * 10_000_000
        n = 0
        async with conn.cursor("named") as cursor:
            await cursor.execute("SELECT n, NULLIF(n % 2, 1) FROM generate_series(0, 9999) n")
            async for a, b in cursor:
                assert (a, b) == (n, 0 if n % 2 == 0 else None)
                n += 1
        assert n == 10_000


async def pools():
    async with AsyncConnectionPool(kwargs=WHERE, min_size=5, max_size=20, open=False) as pool:

        async def work(n):
            async with pool.connection() as conn:
                return (await row(conn, "SELECT %s::int + 1", n))[0]

        assert await asyncio.gather(*(work(n) for n in range(300))) == list(range(1, 301))


common.run_async(
    connects_with_scram,
    connects_with_tls,
    cancels,
    many_clients,
    pipelines,
    copies,
    listens,
    large_results,
    pools,
)
