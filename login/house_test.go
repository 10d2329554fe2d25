package login_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/journal"
	"creto.dev/login"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

const origin = "http://localhost:7300"

var at = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

// house is a node's people: alice and bob are known.
type house struct {
	db          *sql.DB
	clock       *consensustest.Manual
	authority   *localnhi.Authority
	log         *localaudit.Log
	sessions    *login.Sessions
	passkeys    *login.Passkeys
	delegations *login.Delegations
	devices     *login.Devices
}

func open(t testing.TB) *house {
	t.Helper()
	ctx, dir := t.Context(), t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	h := &house{clock: &consensustest.Manual{}}
	h.clock.Set(at)
	var err error
	h.db = dbtest.OpenIn(t, dir)
	p := localpqc.New()
	kek, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	check(err)
	h.authority, err = localnhi.Open(ctx, localnhi.Config{TrustDomain: "test.local", Tenant: creto.DefaultTenant}, h.db, p, h.clock, kek)
	check(err)
	signer, err := h.authority.CheckpointSigner(ctx, "test.local/log")
	check(err)
	h.log, err = localaudit.Open(ctx, localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: filepath.Join(dir, "audit")}, Flush: time.Millisecond}}, h.db, p, h.clock, signer, kek, slog.New(slog.DiscardHandler))
	check(err)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	logged := make(chan struct{})
	go func() { defer close(logged); _ = h.log.Run(running) }()
	t.Cleanup(func() { stop(); <-logged; _ = h.log.Close() })
	for _, name := range []string{"alice", "bob"} {
		check(h.authority.AddMember(ctx, h.human(name)))
	}
	h.sessions = login.NewSessions(h.db, h.clock)
	h.passkeys, err = login.OpenPasskeys(origin, h.db, h.clock, h.log)
	check(err)
	h.delegations = login.NewDelegations(h.db, h.clock, h.log, h.authority.Delegate)
	h.devices = login.NewDevices(h.sessions, h.clock, h.log)
	return h
}

func (h *house) human(name string) creto.ID { return h.authority.ID(creto.KindHuman, name) }

// session is one of a human who was just known by method.
func (h *house) session(t testing.TB, name string, method login.Method) login.Session {
	t.Helper()
	token, _, err := h.sessions.New(t.Context(), h.human(name), method)
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.sessions.Find(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// draft is a link of a human's to an agent that is made for it.
func (h *house) draft(t testing.TB, human, agent string) nhi.Link {
	t.Helper()
	id := h.authority.ID(creto.KindAgent, agent)
	if err := h.authority.AddAgent(t.Context(), id); err != nil && !errors.Is(err, fault.AlreadyExists) {
		t.Fatal(err)
	}
	link, err := h.authority.Draft(t.Context(), h.human(human), id, nhi.Grant{Scope: nhi.Everything(), TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// records waits for n records of an event, and returns them, the newest first.
func (h *house) records(t testing.TB, what string, n int) []audit.Entry {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(patience)
	for {
		entries, err := h.log.Query(t.Context(), audit.Filter{What: what})
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) >= n {
			return entries
		}
		select {
		case <-deadline:
			t.Fatalf("%d records of %s, want %d", len(entries), what, n)
		case <-ticker.C:
		}
	}
}

// refused holds an error to a code.
func refused(t testing.TB, name string, err error, code fault.Code) {
	t.Helper()
	if !errors.Is(err, code) {
		t.Errorf("%s: %v, want %v", name, err, code)
	}
}
