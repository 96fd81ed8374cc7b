// pgx through the pooler, in each of its ways to send a query. Debian's version of it, 4.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgconn/stmtcache"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

// A failure of a test; everything else that panics is a defect of the program.
type failure struct{ text string }

func fail(format string, arguments ...interface{}) {
	panic(failure{fmt.Sprintf(format, arguments...)})
}

func must(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func same(expected, found interface{}) {
	if !reflect.DeepEqual(expected, found) {
		fail("expected %.200q, found %.200q", fmt.Sprint(expected), fmt.Sprint(found))
	}
}

func code(err error) string {
	var server *pgconn.PgError
	if !errors.As(err, &server) {
		fail("not an error of the server: %v", err)
	}
	return server.Code
}

// Everything a test does ends with it.
func limited() context.Context {
	ctx, _ := context.WithTimeout(context.Background(), time.Minute) //nolint:govet
	return ctx
}

// The parameters of libpq's environment variables, and those given.
func configure(parameters string) *pgx.ConnConfig {
	config, err := pgx.ParseConfig(parameters)
	must(err)
	return config
}

func connect(ctx context.Context, parameters string) *pgx.Conn {
	conn, err := pgx.ConnectConfig(ctx, configure(parameters))
	must(err)
	return conn
}

func scalar[T any](ctx context.Context, conn interface {
	QueryRow(context.Context, string, ...interface{}) pgx.Row
}, sql string, arguments ...interface{}) T {
	var value T
	must(conn.QueryRow(ctx, sql, arguments...).Scan(&value))
	return value
}

func execute(ctx context.Context, conn *pgx.Conn, sql string) {
	_, err := conn.Exec(ctx, sql)
	must(err)
}

// Waits until a query is asleep.
func asleep(ctx context.Context) {
	observer := connect(ctx, "port="+os.Getenv("DIRECT_PORT"))
	defer observer.Close(ctx)
	for scalar[int](ctx, observer, `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND state = 'active' AND wait_event = 'PgSleep'`) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
}

func cancelled(ctx context.Context, conn *pgx.Conn) {
	go func() {
		asleep(ctx)
		if err := conn.PgConn().CancelRequest(ctx); err != nil {
			fmt.Println("cancel:", err)
		}
	}()
	_, err := conn.Exec(ctx, "SELECT pg_sleep(600)")
	same("57014", code(err))
	same(1, scalar[int](ctx, conn, "SELECT 1"))
}

func connectsWithScram(ctx context.Context) {
	conn := connect(ctx, "")
	defer conn.Close(ctx)
	same(os.Getenv("PGUSER"), scalar[string](ctx, conn, "SELECT current_user::text"))
	_, err := pgx.ConnectConfig(ctx, configure("password=wrong"))
	same("28P01", code(err))
}

func connectsWithTls(ctx context.Context) {
	conn := connect(ctx, "sslmode=verify-full sslrootcert="+os.Getenv("TLS_CA"))
	defer conn.Close(ctx)
	if _, encrypted := conn.PgConn().Conn().(*tls.Conn); !encrypted {
		fail("not encrypted")
	}
	same(strings.Repeat("é", 3000000), scalar[string](ctx, conn, "SELECT repeat($1, 3000000)", "é"))
	cancelled(ctx, conn)
	_, err := pgx.ConnectConfig(ctx, configure("sslmode=verify-full sslrootcert="+os.Getenv("TLS_OTHER_CA")))
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		fail("a stranger's certificate was taken: %v", err)
	}
}

// How pgx may send a query; the first is its default.
var modes = []func(*pgx.ConnConfig){
	func(*pgx.ConnConfig) {},
	func(config *pgx.ConnConfig) {
		config.BuildStatementCache = func(conn *pgconn.PgConn) stmtcache.Cache {
			return stmtcache.New(conn, stmtcache.ModeDescribe, 100)
		}
	},
	func(config *pgx.ConnConfig) { config.BuildStatementCache = nil },
	func(config *pgx.ConnConfig) { config.PreferSimpleProtocol = true },
	// One that evicts what it has prepared.
	func(config *pgx.ConnConfig) {
		config.BuildStatementCache = func(conn *pgconn.PgConn) stmtcache.Cache {
			return stmtcache.New(conn, stmtcache.ModePrepare, 1)
		}
	},
}

func preparedStatementsOfManyClients(ctx context.Context) {
	var group sync.WaitGroup
	failures := make(chan interface{}, 15)
	for number := 0; number < 15; number++ {
		group.Add(1)
		go func(number int) {
			defer group.Done()
			defer func() { failures <- recover() }()
			config := configure("")
			modes[number%len(modes)](config)
			conn, err := pgx.ConnectConfig(ctx, config)
			must(err)
			defer conn.Close(ctx)
			own := fmt.Sprintf("SELECT $1::text || ' %d'", number)
			for round := 0; round < 20; round++ {
				must(conn.BeginFunc(ctx, func(tx pgx.Tx) error {
					same(number+round, scalar[int](ctx, tx, "SELECT $1::int4 + $2::int4", number, round))
					same(fmt.Sprintf("own %d", number), scalar[string](ctx, tx, own, "own"))
					return nil
				}))
			}
		}(number)
	}
	group.Wait()
	close(failures)
	for found := range failures {
		if found != nil {
			panic(found)
		}
	}
}

func errorsInTransactions(ctx context.Context) {
	conn := connect(ctx, "")
	defer conn.Close(ctx)
	execute(ctx, conn, "DROP TABLE IF EXISTS kept")
	execute(ctx, conn, "CREATE TABLE kept (a int PRIMARY KEY)")
	insert := "INSERT INTO kept VALUES ($1)"
	must(conn.BeginFunc(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, insert, 1)
		must(err)
		savepoint, err := tx.Begin(ctx)
		must(err)
		_, err = savepoint.Exec(ctx, insert, 1)
		same("23505", code(err))
		_, err = savepoint.Exec(ctx, insert, 2)
		same("25P02", code(err))
		must(savepoint.Rollback(ctx))
		_, err = tx.Exec(ctx, insert, 3)
		return err
	}))
	own := errors.New("the client's own")
	err := conn.BeginFunc(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, insert, 4)
		must(err)
		return own
	})
	same(own, err)
	same("13", scalar[string](ctx, conn, "SELECT string_agg(a::text, '' ORDER BY a) FROM kept"))
	execute(ctx, conn, "DROP TABLE kept")
}

// Batches are pipelines with one Sync.
func pipelines(ctx context.Context) {
	conn := connect(ctx, "")
	defer conn.Close(ctx)
	for round := 0; round < 3; round++ {
		batch := &pgx.Batch{}
		for n := 0; n < 200; n++ {
			batch.Queue("SELECT $1::int4 * 2", n)
			batch.Queue(fmt.Sprintf("SELECT $1::text || ' %d'", n%3), "own")
		}
		results := conn.SendBatch(ctx, batch)
		for n := 0; n < 200; n++ {
			var double int
			var text string
			must(results.QueryRow().Scan(&double))
			must(results.QueryRow().Scan(&text))
			same(2*n, double)
			same(fmt.Sprintf("own %d", n%3), text)
		}
		must(results.Close())
	}
	batch := &pgx.Batch{}
	batch.Queue("SELECT 1")
	batch.Queue("SELECT 1 / $1::int4", 0)
	batch.Queue("SELECT 2")
	results := conn.SendBatch(ctx, batch)
	_, err := results.Exec()
	must(err)
	_, err = results.Exec()
	same("22012", code(err))
	if results.Close() == nil {
		fail("the batch went on")
	}
	same(3, scalar[int](ctx, conn, "SELECT 3"))
}

func copies(ctx context.Context) {
	conn := connect(ctx, "")
	defer conn.Close(ctx)
	execute(ctx, conn, "DROP TABLE IF EXISTS copied")
	execute(ctx, conn, "CREATE TABLE copied (a int, b text)")
	var expected bytes.Buffer
	rows := make([][]interface{}, 20000)
	for n := range rows {
		rows[n] = []interface{}{n, fmt.Sprintf("row %d", n)}
		fmt.Fprintf(&expected, "%d\trow %d\n", n, n)
	}
	count, err := conn.CopyFrom(ctx, pgx.Identifier{"copied"}, []string{"a", "b"}, pgx.CopyFromRows(rows))
	must(err)
	same(int64(20000), count)
	var out bytes.Buffer
	_, err = conn.PgConn().CopyTo(ctx, &out, "COPY (SELECT * FROM copied ORDER BY a) TO STDOUT")
	must(err)
	same(expected.String(), out.String())
	_, err = conn.PgConn().CopyFrom(ctx, strings.NewReader("no number\trow\n"), "COPY copied FROM STDIN")
	same("22P02", code(err))
	same(20000, scalar[int](ctx, conn, "SELECT count(*) FROM copied"))
	execute(ctx, conn, "DROP TABLE copied")
}

func cancels(ctx context.Context) {
	conn := connect(ctx, "")
	defer conn.Close(ctx)
	for n := 0; n < 3; n++ {
		cancelled(ctx, conn)
	}
	// A context that ends closes the connection, after a CancelRequest.
	short, cancel := context.WithCancel(ctx)
	go func() {
		asleep(ctx)
		cancel()
	}()
	_, err := conn.Exec(short, "SELECT pg_sleep(600)")
	if !errors.Is(err, context.Canceled) {
		fail("not cancelled: %v", err)
	}
	next := connect(ctx, "")
	defer next.Close(ctx)
	for scalar[int](ctx, next, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()") != 0 {
		time.Sleep(10 * time.Millisecond)
	}
}

func listens(ctx context.Context) {
	listener, teller := connect(ctx, ""), connect(ctx, "")
	defer listener.Close(ctx)
	defer teller.Close(ctx)
	execute(ctx, listener, `LISTEN "News"`)
	for _, payload := range []string{"first", "rolled back", "last"} {
		tx, err := teller.Begin(ctx)
		must(err)
		_, err = tx.Exec(ctx, "SELECT pg_notify('News', $1)", payload)
		must(err)
		if payload == "rolled back" {
			must(tx.Rollback(ctx))
		} else {
			must(tx.Commit(ctx))
		}
	}
	for _, expected := range []string{"first", "last"} {
		heard, err := listener.WaitForNotification(ctx)
		must(err)
		same("News: "+expected, heard.Channel+": "+heard.Payload)
	}
	same(1, scalar[int](ctx, listener, "SELECT 1"))
}

func types(ctx context.Context) {
	for _, mode := range modes {
		config := configure("")
		mode(config)
		conn, err := pgx.ConnectConfig(ctx, config)
		must(err)
		when := time.Date(2024, 2, 29, 12, 30, 0, 123456000, time.UTC)
		for round := 0; round < 3; round++ {
			var (
				number  int64
				float   float64
				text    string
				data    []byte
				array   []*int32
				stamp   time.Time
				null    *string
				empty   string
				decimal string
			)
			must(conn.QueryRow(ctx, `SELECT $1::int8, $2::float8, $3::text, $4::bytea, array[1, NULL, 3], $5::timestamptz,
				$6::text, $7::text, $8::numeric::text`,
				int64(-1<<62), 1.5, "naïve \U0001F418", []byte{0, 255}, when, nil, "", "123456789.0012300",
			).Scan(&number, &float, &text, &data, &array, &stamp, &null, &empty, &decimal))
			same(int64(-1<<62), number)
			same(1.5, float)
			same("naïve \U0001F418", text)
			same([]byte{0, 255}, data)
			if len(array) != 3 || *array[0] != 1 || array[1] != nil || *array[2] != 3 {
				fail("array: %v", array)
			}
			same(true, when.Equal(stamp))
			same((*string)(nil), null)
			same("", empty)
			same("123456789.0012300", decimal)
		}
		must(conn.Close(ctx))
	}
}

func largeResults(ctx context.Context) {
	conn := connect(ctx, "")
	defer conn.Close(ctx)
	text := scalar[string](ctx, conn, "SELECT $1::text || repeat('y', 10000000)", strings.Repeat("x", 10000000))
	same(true, text == strings.Repeat("x", 10000000)+strings.Repeat("y", 10000000))
	rows, err := conn.Query(ctx, "SELECT n, repeat('z', n % $1::int4) FROM generate_series(0, 99999) n", 100)
	must(err)
	expected := 0
	for rows.Next() {
		var number int
		must(rows.Scan(&number, &text))
		same(expected, number)
		same(expected%100, len(text))
		expected++
	}
	must(rows.Err())
	same(100000, expected)
}

func pools(ctx context.Context) {
	pool, err := pgxpool.Connect(ctx, "pool_max_conns=20")
	must(err)
	defer pool.Close()
	found := make(chan int, 300)
	for n := 0; n < 300; n++ {
		go func(n int) {
			var value int
			if err := pool.QueryRow(ctx, "SELECT $1::int4 + 1", n).Scan(&value); err != nil {
				fmt.Println(err)
			}
			found <- value
		}(n)
	}
	sum := 0
	for n := 0; n < 300; n++ {
		sum += <-found
	}
	same(300*301/2, sum)
}

func main() {
	status := 0
	for _, test := range []struct {
		name string
		run  func(context.Context)
	}{
		{"connectsWithScram", connectsWithScram},
		{"connectsWithTls", connectsWithTls},
		{"preparedStatementsOfManyClients", preparedStatementsOfManyClients},
		{"errorsInTransactions", errorsInTransactions},
		{"pipelines", pipelines},
		{"copies", copies},
		{"cancels", cancels},
		{"listens", listens},
		{"types", types},
		{"largeResults", largeResults},
		{"pools", pools},
	} {
		func() {
			defer func() {
				switch found := recover().(type) {
				case nil:
					fmt.Println("ok", test.name)
				case failure:
					fmt.Println("FAILED", test.name, found.text)
					status = 1
				default:
					panic(found)
				}
			}()
			test.run(limited())
		}()
	}
	os.Exit(status)
}
