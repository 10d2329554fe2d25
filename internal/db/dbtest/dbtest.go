// Package dbtest gives each test a database of its own, on the engine that the
// environment variable CRETO_TEST_DB names: sqlite, which is the default, or
// postgres.
package dbtest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"creto.dev/internal/db"
)

// Env names the variable that names the engine.
const Env = "CRETO_TEST_DB"

// The engines.
const (
	SQLite     = "sqlite"
	PostgreSQL = "postgres"
)

// Engine returns the engine that the tests run on.
func Engine(t testing.TB) string {
	t.Helper()
	switch engine := os.Getenv(Env); engine {
	case "", SQLite:
		return SQLite
	case PostgreSQL:
		return PostgreSQL
	default:
		t.Fatalf("%s=%s: the engines are %s and %s", Env, engine, SQLite, PostgreSQL)
		return ""
	}
}

// Open opens a fresh database, which is closed at the test's end.
func Open(t testing.TB) *sql.DB {
	t.Helper()
	return OpenIn(t, t.TempDir())
}

// OpenIn opens the database of a test's directory, the same one each time; it is
// closed at the test's end.
func OpenIn(t testing.TB, dir string) *sql.DB {
	t.Helper()
	d, err := db.Open(t.Context(), Location(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// Location returns where db.Open finds the database of a test's directory, also
// in another process.
func Location(t testing.TB, dir string) string {
	t.Helper()
	if Engine(t) == SQLite {
		return filepath.Join(dir, "creto.db")
	}
	name := sha256.Sum256([]byte(dir))
	return Postgres(t, "test_"+hex.EncodeToString(name[:16]))
}

// Break makes the database refuse a kind of statement, such as "INSERT ON quota",
// until mend is called.
func Break(t testing.TB, d *sql.DB, when string) (mend func()) {
	t.Helper()
	exec := func(query string) {
		t.Helper()
		if _, err := d.ExecContext(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	if Engine(t) == SQLite {
		exec("CREATE TRIGGER broken BEFORE " + when + " BEGIN SELECT RAISE(ABORT, 'broken'); END")
		return func() { exec("DROP TRIGGER broken") }
	}
	exec("CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'broken'; END $$")
	exec("CREATE TRIGGER broken BEFORE " + when + " FOR EACH ROW EXECUTE FUNCTION break()")
	return func() { exec("DROP FUNCTION break CASCADE") }
}

// Postgres returns the URL of a schema, which is made if need be, of a PostgreSQL
// server that is started once in a process and ends with it. Without PostgreSQL
// installed the test is skipped, or fails if CRETO_TEST_REQUIRE is 1.
func Postgres(t testing.TB, schema string) string {
	t.Helper()
	server, err := shared()
	if errors.Is(err, errMissing) && os.Getenv("CRETO_TEST_REQUIRE") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := pgx.Connect(t.Context(), server.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(t.Context())) }()
	if _, err := c.Exec(t.Context(), "CREATE SCHEMA IF NOT EXISTS "+schema); err != nil {
		t.Fatal(err)
	}
	return server.URL(schema)
}

// shared starts the process's server, the first time.
var shared = sync.OnceValues(func() (*Server, error) { return start() })

// NewServer starts a PostgreSQL server of the test's own, which it may stop and
// start again.
func NewServer(t testing.TB) *Server {
	t.Helper()
	s, err := start()
	if errors.Is(err, errMissing) && os.Getenv("CRETO_TEST_REQUIRE") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.keeper.Close() })
	return s
}

// Server is a running PostgreSQL server with its data, a socket and nothing else
// in a directory that only its user may enter. It is gone when the process that
// started it is, however that ended.
type Server struct {
	dir    string
	bin    string
	uid    *syscall.Credential // nil: ours
	keeper *os.File            // held open; its end is the server's
}

var errMissing = errors.New("PostgreSQL is not installed: run make debian, or apt-get install postgresql")

// keep runs a server until it is told to stop by the end of its input, and
// removes what it leaves.
const keep = `"$1/postgres" -D "$2/data" -k "$2" -c listen_addresses= -c max_connections=400 -c shared_buffers=32MB "${@:3}" >>"$2/log" 2>&1 & cat >/dev/null; "$1/pg_ctl" -D "$2/data" -m immediate stop >/dev/null 2>&1; wait; rm -rf "$2"`

// start installs a server in a fresh directory and starts it.
func start(settings ...string) (*Server, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return nil, errMissing
	}
	slices.SortFunc(found, func(a, b string) int { return major(a) - major(b) })
	s := &Server{bin: filepath.Dir(found[len(found)-1])}
	if s.dir, err = os.MkdirTemp("", "creto-postgres-"); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 { // PostgreSQL refuses root
		if err := s.drop(); err != nil {
			return nil, err
		}
	}
	if out, err := s.command("initdb", "-D", filepath.Join(s.dir, "data"), "-U", "creto", "-A", "trust", "-E", "UTF8", "--no-locale", "-N").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	end, keeper, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.keeper = keeper
	shell := exec.Command("/bin/bash", append([]string{"-c", keep, "keep", s.bin, s.dir}, settings...)...) //nolint:gosec // a constant script
	shell.Stdin = end
	shell.SysProcAttr = &syscall.SysProcAttr{Credential: s.uid, Setpgid: true}
	shell.Dir = s.dir
	if err := errors.Join(shell.Start(), end.Close()); err != nil {
		return nil, err
	}
	go func() { _ = shell.Wait() }() // it ends after us
	return s, s.await()
}

// drop has the server run as an unprivileged user.
func (s *Server) drop() error {
	who, err := user.Lookup("postgres")
	if err != nil {
		if who, err = user.Lookup("nobody"); err != nil {
			return err
		}
	}
	uid, err := strconv.ParseUint(who.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(who.Gid, 10, 32)
	if err != nil {
		return err
	}
	s.uid = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(s.dir, int(uid), int(gid))
}

// command returns one of PostgreSQL's programs, to run as the server's user.
func (s *Server) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(s.bin, name), args...) //nolint:gosec // programs of PostgreSQL
	c.SysProcAttr = &syscall.SysProcAttr{Credential: s.uid}
	c.Dir = s.dir
	return c
}

// Settings changes the server's settings, as name=value; what needs a restart
// waits for one.
func (s *Server) Settings(t testing.TB, settings ...string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), s.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(t.Context())) }()
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		if _, err := c.Exec(t.Context(), "ALTER SYSTEM SET "+name+" = '"+value+"'"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Exec(t.Context(), "SELECT pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
}

// Stop ends the server at once, as a crash does: pg_ctl stop -m immediate.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if out, err := s.command("pg_ctl", "-D", filepath.Join(s.dir, "data"), "-m", "immediate", "-w", "stop").CombinedOutput(); err != nil {
		t.Fatalf("pg_ctl stop: %v\n%s", err, out)
	}
}

// Start starts the server again after Stop.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	c := s.command("pg_ctl", "-D", filepath.Join(s.dir, "data"), "-l", filepath.Join(s.dir, "log"), "-w", "-o", "-k "+s.dir+" -c listen_addresses=", "start")
	if err := c.Run(); err != nil { // its output is the server's too, so it is not read to its end
		t.Fatalf("pg_ctl start: %v", err)
	}
}

// URL returns where db.Open finds a schema of the server; "" is the public one.
func (s *Server) URL(schema string) string {
	query := url.Values{"host": {s.dir}, "user": {"creto"}}
	if schema != "" {
		query.Set("search_path", schema)
	}
	return (&url.URL{Scheme: "postgres", Path: "/postgres", RawQuery: query.Encode(), OmitHost: false}).String()
}

// await waits until the server answers.
func (s *Server) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := pgx.Connect(ctx, s.URL(""))
		if err == nil {
			return c.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not start: %w\n%s", err, s.tail())
		case <-tick.C:
		}
	}
}

// tail returns the last lines of the server's log.
func (s *Server) tail() string {
	f, err := os.Open(filepath.Join(s.dir, "log"))
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	var lines []string
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		lines = append(lines, scanner.Text())
	}
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// major returns the version in the path of a program of Debian's PostgreSQL.
func major(path string) int {
	n, _ := strconv.Atoi(strings.Split(path, "/")[4]) // 0 for what is no number
	return n
}
