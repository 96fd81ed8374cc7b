"""Django through the pooler: migrations, the ORM and its test client, with a connection per thread."""

import datetime
import decimal
import threading
from concurrent.futures import ThreadPoolExecutor

import django
from django.conf import settings

import common

settings.configure(
    DATABASES={
        name: {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": common.HOST,
            "PORT": common.PORT,
            "USER": common.USER,
            "PASSWORD": common.PASSWORD,
            "NAME": common.DATABASE,
            "CONN_MAX_AGE": None,
            "CONN_HEALTH_CHECKS": True,
            # As Django's manual asks for behind a pooler in transaction mode.
            "DISABLE_SERVER_SIDE_CURSORS": True,
            "OPTIONS": options,
        }
        for name, options in {
            "default": {},
            "server_side": {"server_side_binding": True, "prepare_threshold": 0},
            "tls": {"sslmode": "verify-full", "sslrootcert": common.TLS_CA},
            "stranger": {"sslmode": "verify-full", "sslrootcert": common.TLS_OTHER_CA},
        }.items()
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["testserver"],
    SECRET_KEY="only for tests",
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()

from django.contrib.auth.models import Group, User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import DatabaseError, IntegrityError, connection, connections, models, transaction  # noqa: E402
from django.http import HttpResponse, JsonResponse  # noqa: E402
from django.test import Client  # noqa: E402
from django.urls import path  # noqa: E402


class Order(models.Model):
    amount = models.DecimalField(max_digits=12, decimal_places=2)
    placed = models.DateTimeField()
    note = models.TextField(null=True)
    data = models.BinaryField(default=b"")
    extra = models.JSONField(null=True)

    class Meta:
        app_label = "shop"


def me(request):
    visits = request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"user": request.user.username, "visits": visits})


@transaction.atomic
def breaks(request):
    Group.objects.create(name="never seen")
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1/0")
    return HttpResponse()


urlpatterns = [path("me", me), path("breaks", breaks)]
WHEN = datetime.datetime(2024, 2, 29, 12, 30, 0, 123456, datetime.timezone.utc)


def connects_with_scram():
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        assert cursor.fetchone() == (common.USER,)


def connects_with_tls():
    with connections["tls"].cursor() as cursor:
        assert connections["tls"].connection.pgconn.ssl_in_use
        cursor.execute("SELECT repeat(%s, 3000000)", ["é"])
        assert cursor.fetchone() == ("é" * 3000000,)
    connections["tls"].close()
    try:
        connections["stranger"].ensure_connection()
    except DatabaseError as error:
        assert "SSL error" in str(error), error
        return
    raise AssertionError("a stranger's certificate was taken")


def migrates():
    call_command("migrate", verbosity=0)
    with connection.schema_editor() as editor:
        editor.create_model(Order)
    with connection.cursor() as cursor:
        tables = connection.introspection.table_names(cursor)
    assert {"auth_user", "django_session", "shop_order"} <= set(tables), tables


def objects():
    orders = [
        Order(
            amount=decimal.Decimal(f"{n}.10"),
            placed=WHEN,
            note=None if n % 2 else "é",
            data=b"\0\xff",
            extra={"n": [n, None]} if n % 3 else None,
        )
        for n in range(500)
    ]
    Order.objects.bulk_create(orders)
    for alias in ("default", "server_side"):
        found = Order.objects.using(alias).order_by("id")
        assert len(found) == 500
        for n, order in enumerate(found):
            assert order.amount == decimal.Decimal(f"{n}.10") and order.placed == WHEN
            assert order.note == (None if n % 2 else "é") and bytes(order.data) == b"\0\xff"
            assert order.extra == ({"n": [n, None]} if n % 3 else None)
        assert sum(1 for _ in found.iterator(chunk_size=100)) == 500
        assert found.filter(note__isnull=True).aggregate(models.Sum("amount"))["amount__sum"] == sum(
            decimal.Decimal(f"{n}.10") for n in range(1, 500, 2)
        )
        assert found.filter(extra__n__0=7).count() == 1


def errors_in_transactions():
    for alias in ("default", "server_side"):
        groups = Group.objects.using(alias)
        groups.all().delete()
        with transaction.atomic(using=alias):
            groups.create(name="kept")
            try:
                with transaction.atomic(using=alias):
                    groups.create(name="kept")
                raise AssertionError("no error")
            except IntegrityError:
                pass
            groups.create(name="kept, too")
        try:
            with transaction.atomic(using=alias):
                groups.create(name="rolled back")
                raise KeyError("the program's own")
        except KeyError:
            pass
        assert sorted(groups.values_list("name", flat=True)) == ["kept", "kept, too"]


def test_client():
    User.objects.all().delete()

    def visit(n):
        try:
            User.objects.create_user(f"user{n}", password="secret")
            client = Client(raise_request_exception=False)
            assert client.get("/me").json() == {"user": "", "visits": 1}
            assert not client.login(username=f"user{n}", password="wrong")
            assert client.login(username=f"user{n}", password="secret")
            for visits in range(2, 10):
                assert client.get("/me").json() == {"user": f"user{n}", "visits": visits}
                if visits == 5:
                    assert client.get("/breaks").status_code == 500
            client.logout()
            return client.get("/me").json()["user"]
        finally:
            connections.close_all()

    with ThreadPoolExecutor(12) as executor:
        assert list(executor.map(visit, range(24))) == [""] * 24
    assert User.objects.count() == 24
    assert not Group.objects.filter(name="never seen").exists()


def locks_rows():
    Order.objects.filter(extra__isnull=True).update(note="0")
    chosen = Order.objects.order_by("id").first().id

    def count():
        try:
            for _ in range(10):
                with transaction.atomic():
                    order = Order.objects.select_for_update().get(id=chosen)
                    order.note = str(int(order.note) + 1)
                    order.save()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=count) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Order.objects.get(id=chosen).note == "100"


def large_results():
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s || repeat('y', 10000000)", ["x" * 10_000_000])
        assert cursor.fetchone() == ("x" * 10_000_000 + "y" * 10_000_000,)
        cursor.execute("SELECT n, repeat('z', n % 100) FROM generate_series(0, 99999) n")
        assert cursor.rowcount == 100_000
        assert all(row == (n, "z" * (n % 100)) for n, row in enumerate(cursor))


def ends():
    with connection.schema_editor() as editor:
        editor.delete_model(Order)
    call_command("migrate", "auth", "zero", verbosity=0)
    with connection.cursor() as cursor:
        tables = connection.introspection.table_names(cursor)
    assert "auth_user" not in tables and "shop_order" not in tables, tables
    connections.close_all()


common.run(
    [
        (test.__name__, test)
        for test in (
            connects_with_scram,
            connects_with_tls,
            migrates,
            objects,
            errors_in_transactions,
            test_client,
            locks_rows,
            large_results,
            ends,
        )
    ]
)
