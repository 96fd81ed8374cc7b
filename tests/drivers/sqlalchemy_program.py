"""SQLAlchemy through the pooler, by psycopg and by asyncpg: its pool's resets, its ORM, its reflection."""

import asyncio
import datetime
import decimal
import ssl
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

import common


def url(driver, **options):
    return sa.URL.create(
        f"postgresql+{driver}",
        **{
            **dict(
                username=common.USER,
                password=common.PASSWORD,
                host=common.HOST,
                port=common.PORT,
                database=common.DATABASE,
            ),
            **options,
        },
    )


class Base(orm.DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(unique=True)
    note: orm.Mapped[str | None]
    orders: orm.Mapped[list["Order"]] = orm.relationship(back_populates="customer", order_by="Order.id")


class Order(Base):
    __tablename__ = "orders"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    customer_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("customers.id"))
    amount: orm.Mapped[decimal.Decimal] = orm.mapped_column(sa.Numeric(12, 2))
    placed: orm.Mapped[datetime.datetime] = orm.mapped_column(sa.DateTime(timezone=True))
    extra: orm.Mapped[dict | None] = orm.mapped_column(JSONB)
    customer: orm.Mapped[Customer] = orm.relationship(back_populates="orders")


ENGINE = sa.create_engine(url("psycopg"), pool_size=10, max_overflow=10, pool_pre_ping=True)
WHEN = datetime.datetime(2024, 2, 29, 12, 30, 0, 123456, datetime.timezone.utc)


def connects_with_scram():
    with ENGINE.connect() as conn:
        assert conn.scalar(sa.text("SELECT current_user")) == common.USER
    engine = sa.create_engine(url("psycopg", password="wrong"))
    try:
        engine.connect()
    except sa.exc.OperationalError as error:
        assert "password authentication failed" in str(error), error
        return
    raise AssertionError("let in with a wrong password")


def connects_with_tls():
    for ca, good in ((common.TLS_CA, True), (common.TLS_OTHER_CA, False)):
        engine = sa.create_engine(url("psycopg"), connect_args={"sslmode": "verify-full", "sslrootcert": ca})
        try:
            with engine.connect() as conn:
                assert good, "a stranger's certificate was taken"
                assert conn.scalar(sa.select(sa.func.repeat("é", 3000000))) == "é" * 3000000
        except sa.exc.OperationalError as error:
            assert not good and "SSL error" in str(error), error
        engine.dispose()


def makes_and_reflects_tables():
    Base.metadata.drop_all(ENGINE)
    Base.metadata.create_all(ENGINE)
    found = sa.MetaData()
    found.reflect(ENGINE)
    assert set(found.tables) == {"customers", "orders"}, found.tables
    assert [str(column.type) for column in found.tables["orders"].columns] == [
        "INTEGER",
        "INTEGER",
        "NUMERIC(12, 2)",
        "TIMESTAMP",
        "JSONB",
    ]
    assert sa.inspect(ENGINE).get_unique_constraints("customers")[0]["column_names"] == ["name"]


def objects():
    with orm.Session(ENGINE) as session, session.begin():
        for n in range(50):
            orders = [Order(amount=decimal.Decimal(f"{n}.{m:02}"), placed=WHEN) for m in range(20)]
            orders[0].extra = {"n": [n, None]}
            session.add(Customer(name=f"customer {n}", note=None if n % 2 else "é", orders=orders))
    with orm.Session(ENGINE) as session:
        query = sa.select(Customer).options(orm.selectinload(Customer.orders)).order_by(Customer.id)
        customers = session.scalars(query).all()
        assert len(customers) == 50
        for n, customer in enumerate(customers):
            assert customer.note == (None if n % 2 else "é")
            assert [order.amount for order in customer.orders] == [decimal.Decimal(f"{n}.{m:02}") for m in range(20)]
            assert customer.orders[0].extra == {"n": [n, None]} and customer.orders[1].extra is None
            assert customer.orders[0].placed == WHEN


def errors_in_transactions():
    with orm.Session(ENGINE) as session:
        session.add(Customer(name="kept"))
        session.flush()
        try:
            with session.begin_nested():
                session.add(Customer(name="kept"))
                session.flush()
            raise AssertionError("no error")
        except sa.exc.IntegrityError:
            pass
        session.add(Customer(name="kept, too"))
        session.commit()
        try:
            session.execute(sa.text("SELECT 1/0"))
            raise AssertionError("no error")
        except sa.exc.DataError:
            pass
        session.rollback()
        session.add(Customer(name="rolled back"))
        session.flush()
        session.rollback()
        names = session.scalars(sa.select(Customer.name).where(Customer.name.not_like("customer %")))
        assert sorted(names) == ["kept", "kept, too"]


def isolation_levels():
    for level in ("SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"):
        engine = ENGINE.execution_options(isolation_level=level)
        for _ in range(3):
            with engine.begin() as conn:
                assert conn.scalar(sa.text("SHOW transaction_isolation")) == level.lower()
    with ENGINE.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.text("VACUUM customers"))
    with ENGINE.begin() as conn:
        assert conn.scalar(sa.text("SHOW transaction_isolation")) == "read committed"


def many_clients():
    def work(n):
        with orm.Session(ENGINE) as session, session.begin():
            name = f"customer {n % 50}"
            query = sa.select(sa.func.count()).select_from(Order).join(Customer).where(Customer.name == name)
            assert session.scalar(query) == 20
            session.execute(sa.update(Customer).where(Customer.name == name).values(note=f"by {n}"))
        return n

    with ThreadPoolExecutor(20) as executor:
        assert list(executor.map(work, range(300))) == list(range(300))
    with ENGINE.begin() as conn:
        assert conn.scalar(sa.text("SELECT count(*) FROM customers WHERE note LIKE 'by %'")) == 50


def streamed_and_large_results():
    with ENGINE.connect() as conn:
        query = sa.text("SELECT n, repeat('z', n % 100) FROM generate_series(0, 99999) n")
        rows = conn.execution_options(yield_per=5000).execute(query)
        count = 0
        for n, row in enumerate(rows):
            assert tuple(row) == (n, "z" * (n % 100))
            count += 1
        assert count == 100_000
        text = conn.scalar(sa.text("SELECT :a || repeat('y', 10000000)"), {"a": "x" * 10_000_000})
        assert text == "x" * 10_000_000 + "y" * 10_000_000


def asynchronously():
    async def main():
        tls = ssl.create_default_context(cafile=common.TLS_CA)
        engine = create_async_engine(url("asyncpg"), pool_size=15, connect_args={"ssl": tls})
        sessions = async_sessionmaker(engine)

        async def work(n):
            async with sessions() as session, session.begin():
                customer = await session.scalar(sa.select(Customer).where(Customer.name == f"customer {n % 50}"))
                orders = await session.scalars(sa.select(Order).where(Order.customer_id == customer.id).order_by(Order.id))
                assert [order.amount for order in orders][7] == decimal.Decimal(f"{n % 50}.07")
                try:
                    async with session.begin_nested():
                        await session.execute(sa.text("SELECT 1 / CAST(:n AS int)"), {"n": n % 3})
                except sa.exc.DBAPIError:
                    assert n % 3 == 0
                return await session.scalar(sa.text("SELECT CAST(:n AS int) + 1"), {"n": n})

        results = await asyncio.gather(*(work(n) for n in range(200)))
        assert results == list(range(1, 201))
        await engine.dispose()

    asyncio.run(asyncio.wait_for(main(), 60))


def ends():
    Base.metadata.drop_all(ENGINE)
    ENGINE.dispose()


common.run(
    [
        (test.__name__, test)
        for test in (
            connects_with_scram,
            connects_with_tls,
            makes_and_reflects_tables,
            objects,
            errors_in_transactions,
            isolation_levels,
            many_clients,
            streamed_and_large_results,
            asynchronously,
            ends,
        )
    ]
)
