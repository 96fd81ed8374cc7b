// pgjdbc through the pooler: server-side statements from the first or the fifth execution on, and batches.

import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Properties;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;

public class PgjdbcProgram {
    interface Test {
        void run() throws Exception;
    }

    static int failed = 0;

    static void test(String name, Test test) throws Exception {
        ExecutorService executor = Executors.newSingleThreadExecutor(task -> {
            Thread thread = new Thread(task);
            thread.setDaemon(true);
            return thread;
        });
        try {
            executor.submit(() -> {
                test.run();
                return null;
            }).get(60, java.util.concurrent.TimeUnit.SECONDS);
            System.out.println("ok " + name);
        } catch (Exception failure) {
            failed++;
            System.out.println("FAILED " + name);
            failure.printStackTrace(System.out);
        }
        executor.shutdown();
    }

    static Connection connect(String... options) throws SQLException {
        return connectTo(System.getenv("PGPORT"), options);
    }

    /** Options are names and values, in turn. */
    static Connection connectTo(String port, String... options) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        properties.setProperty("sslmode", "disable");
        for (int n = 0; n < options.length; n += 2) {
            properties.setProperty(options[n], options[n + 1]);
        }
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + port + "/" + System.getenv("PGDATABASE");
        return DriverManager.getConnection(url, properties);
    }

    static void same(Object expected, Object found) {
        if (!Objects.equals(expected, found)) {
            throw new AssertionError("expected " + brief(expected) + ", found " + brief(found));
        }
    }

    static String brief(Object value) {
        String text = String.valueOf(value);
        return text.length() > 200 ? text.substring(0, 200) + "... (" + text.length() + ")" : text;
    }

    static void fails(String state, Callable<?> action) throws Exception {
        try {
            action.call();
        } catch (SQLException error) {
            same(state, error.getSQLState());
            return;
        }
        throw new AssertionError("no error " + state);
    }

    static boolean execute(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            return statement.execute(sql);
        }
    }

    /** The first row's values. */
    static List<Object> row(Connection connection, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            return row(statement, parameters);
        }
    }

    static List<Object> row(PreparedStatement statement, Object... parameters) throws SQLException {
        for (int n = 0; n < parameters.length; n++) {
            statement.setObject(n + 1, parameters[n]);
        }
        try (ResultSet result = statement.executeQuery()) {
            if (!result.next()) {
                return null;
            }
            List<Object> values = new ArrayList<>();
            for (int n = 1; n <= result.getMetaData().getColumnCount(); n++) {
                values.add(result.getObject(n));
            }
            return values;
        }
    }

    /** Cancels a query of the connection as soon as it runs. */
    static void cancelled(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement();
                Connection observer = connectTo(System.getenv("DIRECT_PORT"))) {
            Thread canceller = new Thread(() -> {
                try {
                    String asleep = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                            + " AND state = 'active' AND wait_event = 'PgSleep'";
                    while (row(observer, asleep).equals(List.of(0L))) {
                        Thread.sleep(10);
                    }
                    statement.cancel();
                } catch (Exception error) {
                    error.printStackTrace(System.out);
                }
            });
            canceller.start();
            fails("57014", () -> statement.execute("SELECT pg_sleep(600)"));
            canceller.join();
        }
        same(List.of(1), row(connection, "SELECT 1"));
    }

    public static void main(String[] arguments) throws Exception {
        test("connectsWithScram", () -> {
            try (Connection connection = connect()) {
                same(List.of(System.getenv("PGUSER")), row(connection, "SELECT current_user::text"));
            }
            fails("28P01", () -> connect("password", "wrong"));
        });

        test("connectsWithTls", () -> {
            try (Connection connection = connect("sslmode", "verify-full", "sslrootcert", System.getenv("TLS_CA"))) {
                List<Object> text = row(connection, "SELECT repeat(?, 3000000)", "é");
                same(List.of("é".repeat(3_000_000)), text);
                cancelled(connection);
            }
            fails("08006", () -> connect("sslmode", "verify-full", "sslrootcert", System.getenv("TLS_OTHER_CA")));
        });

        // By name at once and in binary; by name from the fifth on; never by name; the simple protocol.
        String[][] modes = {
            {"prepareThreshold", "-1"},
            {"prepareThreshold", "5"},
            {"prepareThreshold", "0"},
            {"preferQueryMode", "simple"},
            {"preferQueryMode", "extendedCacheEverything"},
        };
        test("preparedStatementsOfManyClients", () -> {
            ExecutorService executor = Executors.newFixedThreadPool(15);
            List<Future<?>> clients = new ArrayList<>();
            for (int number = 0; number < 15; number++) {
                int client = number;
                clients.add(executor.submit(() -> {
                    try (Connection connection = connect(modes[client % modes.length]);
                            PreparedStatement plus = connection.prepareStatement("SELECT ? + ?::int4");
                            PreparedStatement own = connection.prepareStatement("SELECT ? || ' " + client + "'")) {
                        connection.setAutoCommit(false);
                        for (int round = 0; round < 20; round++) {
                            same(List.of(client + round), row(plus, client, round));
                            same(List.of("own " + client), row(own, "own"));
                            connection.commit();
                        }
                    }
                    return null;
                }));
            }
            for (Future<?> client : clients) {
                client.get();
            }
            executor.shutdown();
        });

        for (String autosave : new String[] {"never", "always", "conservative"}) {
            test("errorsInTransactions, autosave=" + autosave, () -> {
                try (Connection connection = connect("autosave", autosave, "prepareThreshold", "1")) {
                    execute(connection, "DROP TABLE IF EXISTS kept; CREATE TABLE kept (a int PRIMARY KEY)");
                    connection.setAutoCommit(false);
                    try (PreparedStatement insert = connection.prepareStatement("INSERT INTO kept VALUES (?)")) {
                        insert.setInt(1, 1);
                        same(1, insert.executeUpdate());
                        Savepoint savepoint = connection.setSavepoint();
                        fails("23505", insert::executeUpdate);
                        if (autosave.equals("always")) {
                            same(List.of(1), row(connection, "SELECT 1"));
                        } else {
                            fails("25P02", () -> row(connection, "SELECT 1"));
                        }
                        connection.rollback(savepoint);
                        insert.setInt(1, 2);
                        same(1, insert.executeUpdate());
                        connection.commit();
                        insert.setInt(1, 3);
                        same(1, insert.executeUpdate());
                        connection.rollback();
                    }
                    same("{1,2}", row(connection, "SELECT array_agg(a ORDER BY a) FROM kept").get(0).toString());
                    connection.commit();
                    execute(connection, "DROP TABLE kept");
                    connection.commit();
                }
            });
        }

        for (String rewrite : new String[] {"false", "true"}) {
            test("batches, reWriteBatchedInserts=" + rewrite, () -> {
                try (Connection connection = connect("reWriteBatchedInserts", rewrite, "prepareThreshold", "1")) {
                    execute(connection, "DROP TABLE IF EXISTS batched; CREATE TABLE batched (a int UNIQUE, b text)");
                    connection.setAutoCommit(false);
                    try (PreparedStatement insert = connection.prepareStatement("INSERT INTO batched VALUES (?, ?)")) {
                        for (int n = 0; n < 5000; n++) {
                            insert.setInt(1, n);
                            insert.setString(2, n % 2 == 0 ? null : "row " + n);
                            insert.addBatch();
                        }
                        same(5000, insert.executeBatch().length);
                        connection.commit();
                        for (int n : new int[] {9000, 1, 9001}) {
                            insert.setInt(1, n);
                            insert.setString(2, "");
                            insert.addBatch();
                        }
                        fails("23505", insert::executeBatch);
                        connection.rollback();
                    }
                    same(List.of(5000L, 2500L), row(connection, "SELECT count(*), count(b) FROM batched"));
                    connection.commit();
                    try (Statement several = connection.createStatement()) {
                        for (int n = 0; n < 100; n++) {
                            several.addBatch("UPDATE batched SET b = 'x' WHERE a = " + n);
                        }
                        same(100, Arrays.stream(several.executeBatch()).sum());
                    }
                    connection.commit();
                    execute(connection, "DROP TABLE batched");
                    connection.commit();
                }
            });
        }

        test("cursors", () -> {
            try (Connection connection = connect()) {
                connection.setAutoCommit(false);
                try (PreparedStatement statement = connection.prepareStatement("SELECT n FROM generate_series(1, ?) n")) {
                    statement.setInt(1, 2500);
                    statement.setFetchSize(100);
                    long total = 0;
                    try (ResultSet result = statement.executeQuery()) {
                        while (result.next()) {
                            total += result.getInt(1);
                            // Another statement while the portal is open.
                            if (result.getInt(1) % 500 == 0) {
                                same(List.of(1), row(connection, "SELECT 1"));
                            }
                        }
                    }
                    same(2500L * 2501 / 2, total);
                }
                connection.commit();
            }
        });

        test("copies", () -> {
            try (Connection connection = connect()) {
                execute(connection, "DROP TABLE IF EXISTS copied; CREATE TABLE copied (a int, b text)");
                StringBuilder lines = new StringBuilder();
                for (int n = 0; n < 20_000; n++) {
                    lines.append(n).append("\trow ").append(n).append('\n');
                }
                var copy = connection.unwrap(PGConnection.class).getCopyAPI();
                same(20_000L, copy.copyIn("COPY copied FROM STDIN", new StringReader(lines.toString())));
                StringWriter out = new StringWriter();
                same(20_000L, copy.copyOut("COPY (SELECT * FROM copied ORDER BY a) TO STDOUT", out));
                same(lines.toString(), out.toString());
                fails("22P02", () -> copy.copyIn("COPY copied FROM STDIN", new StringReader("no number\trow\n")));
                copy.copyIn("COPY copied FROM STDIN").cancelCopy();
                same(List.of(20_000L), row(connection, "SELECT count(*) FROM copied"));
                execute(connection, "DROP TABLE copied");
            }
        });

        test("cancels", () -> {
            try (Connection connection = connect()) {
                for (int n = 0; n < 3; n++) {
                    cancelled(connection);
                }
                try (Statement statement = connection.createStatement()) {
                    statement.setQueryTimeout(1);
                    fails("57014", () -> statement.execute("SELECT pg_sleep(600)"));
                }
                same(List.of(1), row(connection, "SELECT 1"));
            }
        });

        test("listens", () -> {
            try (Connection listener = connect(); Connection teller = connect()) {
                execute(listener, "LISTEN \"News\"");
                teller.setAutoCommit(false);
                for (String payload : new String[] {"first", "rolled back", "last"}) {
                    row(teller, "SELECT pg_notify('News', ?)::text", payload);
                    if (payload.equals("rolled back")) {
                        teller.rollback();
                    } else {
                        teller.commit();
                    }
                }
                List<String> heard = new ArrayList<>();
                while (heard.size() < 2) {
                    for (PGNotification notification : listener.unwrap(PGConnection.class).getNotifications(60_000)) {
                        heard.add(notification.getName() + ": " + notification.getParameter());
                    }
                }
                same(List.of("News: first", "News: last"), heard);
                execute(listener, "UNLISTEN *");
            }
        });

        test("types", () -> {
            Object[] values = {
                Long.MIN_VALUE, new java.math.BigDecimal("123456789.0012300"), Double.POSITIVE_INFINITY,
                "naïve \uD83D\uDC18", true, java.util.UUID.fromString("00000000-0000-0000-0000-000000000005"), "",
            };
            for (String[] mode : modes) {
                try (Connection connection = connect(mode);
                        PreparedStatement statement = connection.prepareStatement(
                                "SELECT ?::int8, ?::numeric, ?::float8, ?::text, ?::bool, ?::uuid, ?::text")) {
                    for (int n = 0; n < 7; n++) {
                        same(Arrays.asList(values), row(statement, values));
                    }
                    // This pgjdbc has no bytea in the simple protocol.
                    boolean bytes = !mode[1].equals("simple");
                    try (PreparedStatement more = connection.prepareStatement(
                            "SELECT " + (bytes ? "?" : "?::text") + "::bytea, ?::int4[], ?::text, ?::timestamptz")) {
                        for (int n = 0; n < 7; n++) {
                            if (bytes) {
                                more.setBytes(1, new byte[] {0, -1});
                            } else {
                                more.setString(1, "\\x00ff");
                            }
                            more.setArray(2, connection.createArrayOf("int4", new Integer[] {1, null, 3}));
                            more.setNull(3, java.sql.Types.VARCHAR);
                            var when = java.time.OffsetDateTime.parse("2024-02-29T12:30:00.123456Z");
                            more.setObject(4, when);
                            try (ResultSet result = more.executeQuery()) {
                                same(true, result.next());
                                same("[0, -1]", Arrays.toString(result.getBytes(1)));
                                same("[1, null, 3]", Arrays.toString((Object[]) result.getArray(2).getArray()));
                                same(null, result.getString(3));
                                same(when.toInstant(), result.getObject(4, java.time.OffsetDateTime.class).toInstant());
                            }
                        }
                    }
                }
            }
        });

        test("largeResults", () -> {
            try (Connection connection = connect()) {
                String text = "SELECT ? || repeat('y', 10000000)";
                same(
                        List.of("x".repeat(10_000_000) + "y".repeat(10_000_000)),
                        row(connection, text, "x".repeat(10_000_000)));
                int expected = 0;
                try (Statement statement = connection.createStatement();
                        ResultSet result = statement.executeQuery(
                                "SELECT n, repeat('z', n % 100) FROM generate_series(0, 99999) n")) {
                    while (result.next()) {
                        same(expected, result.getInt(1));
                        same(expected % 100, result.getString(2).length());
                        expected++;
                    }
                }
                same(100_000, expected);
            }
        });

        System.exit(failed > 0 ? 1 : 0);
    }
}
