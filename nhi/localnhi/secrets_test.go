package localnhi_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// safe is an authority whose database a test may change behind its back.
type safe struct {
	*localnhi.Authority
	db   *sql.DB
	file string
	open func(kek pqc.SymmetricKey, bindings ...localnhi.SecretBinding) *localnhi.Authority
	kek  pqc.SymmetricKey
}

func openSafe(t *testing.T, bindings ...localnhi.SecretBinding) *safe {
	t.Helper()
	dir := t.TempDir()
	s := &safe{db: dbtest.OpenIn(t, dir), file: filepath.Join(dir, "creto.db")}
	p := localpqc.New()
	var err error
	if s.kek, err = p.GenerateSymmetricKey(pqc.AES256GCM); err != nil {
		t.Fatal(err)
	}
	clock := &consensustest.Manual{}
	clock.Set(time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC))
	s.open = func(kek pqc.SymmetricKey, bindings ...localnhi.SecretBinding) *localnhi.Authority {
		t.Helper()
		a, err := localnhi.Open(t.Context(), localnhi.Config{TrustDomain: "test.local", Tenant: creto.DefaultTenant, Secrets: bindings}, s.db, p, clock, kek)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	s.Authority = s.open(s.kek, bindings...)
	return s
}

// who resolves a token of an agent of a tenant, which it adds.
func (s *safe) who(t *testing.T, tenant, name string) nhi.Identity {
	t.Helper()
	if err := s.AddTenant(t.Context(), tenant); err != nil && !errors.Is(err, fault.AlreadyExists) {
		t.Fatal(err)
	}
	alice, agent := s.IDOf(tenant, creto.KindHuman, "alice"), s.IDOf(tenant, creto.KindAgent, name)
	if err := errors.Join(s.AddMember(t.Context(), alice), s.AddAgent(t.Context(), agent), delegate(t, s.Authority, alice, agent, nhi.Everything())); err != nil {
		t.Fatal(err)
	}
	token, _, err := s.IssueToken(t.Context(), agent, localnhi.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	who, err := s.Resolve(t.Context(), nhi.Credential{Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return who
}

func (s *safe) set(t *testing.T, tenant, name, value string, agents ...creto.ID) localnhi.SecretInfo {
	t.Helper()
	info, err := s.SetSecret(t.Context(), localnhi.SecretInfo{
		Tenant: tenant, Name: nhi.SecretRef(name), Owner: s.IDOf(tenant, creto.KindHuman, "alice"), Agents: agents,
	}, creto.NewSecret(value))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// get returns what one secret is to who, or the error.
func get(ctx context.Context, a *localnhi.Authority, who nhi.Identity, name nhi.SecretRef) (string, error) {
	values, err := a.DelegatedSecrets(ctx, who, []nhi.SecretRef{name})
	if err != nil {
		return "", err
	}
	return values[0].Reveal(), nil
}

func TestSecretStore(t *testing.T) {
	s := openSafe(t)
	bot := s.who(t, creto.DefaultTenant, "bot")
	if info := s.set(t, creto.DefaultTenant, "key", "first"); info.Version != 1 || info.From != "store" || len(info.Agents) > 0 {
		t.Errorf("SetSecret = %+v", info)
	}
	if info := s.set(t, creto.DefaultTenant, "key", "second"); info.Version != 2 {
		t.Errorf("SetSecret again = %+v, want version 2", info)
	}
	if got, err := get(t.Context(), s.Authority, bot, "key"); err != nil || got != "second" {
		t.Errorf("the secret is %q, %v", got, err)
	}
	list, err := s.Secrets(t.Context(), creto.DefaultTenant)
	if err != nil || len(list) != 1 || list[0].Name != "key" || list[0].Version != 2 || list[0].Owner.Name != "alice" || list[0].Set.IsZero() {
		t.Errorf("Secrets = %+v, %v", list, err)
	}
	if err := s.RemoveSecret(t.Context(), creto.DefaultTenant, "key"); err != nil {
		t.Fatal(err)
	}
	if _, err := get(t.Context(), s.Authority, bot, "key"); !errors.Is(err, fault.NHISecretNotFound) {
		t.Errorf("a removed secret: %v, want NHISecretNotFound", err)
	}
	if err := s.RemoveSecret(t.Context(), creto.DefaultTenant, "key"); !errors.Is(err, fault.NHISecretNotFound) {
		t.Errorf("RemoveSecret again = %v, want NHISecretNotFound", err)
	}
	if list, err := s.Secrets(t.Context(), creto.DefaultTenant); err != nil || len(list) > 0 {
		t.Errorf("Secrets after a removal = %+v, %v", list, err)
	}
	// Versions go on: an old row, put back, is no newer one.
	if info := s.set(t, creto.DefaultTenant, "key", "third"); info.Version != 3 {
		t.Errorf("SetSecret after a removal = %+v, want version 3", info)
	}
}

func TestSecretRefused(t *testing.T) {
	s := openSafe(t, localnhi.SecretBinding{Tenant: creto.DefaultTenant, Name: "bound", Source: values{}, Locator: "x", From: "env:X"})
	s.who(t, creto.DefaultTenant, "bot")
	s.who(t, "other", "spy")
	gone := s.who(t, creto.DefaultTenant, "gone").ID
	if err := s.Revoke(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, secret, value string
		agent               creto.ID
		want                fault.Code
	}{
		{"no name", "", "x", creto.ID{}, fault.InvalidArgument},
		{"a path", "../x", "x", creto.ID{}, fault.InvalidArgument},
		{"no value", "key", "", creto.ID{}, fault.InvalidArgument},
		{"a large value", "key", strings.Repeat("x", nhi.MaxSecretBytes+1), creto.ID{}, fault.InvalidArgument},
		{"no text", "key", "\xff", creto.ID{}, fault.InvalidArgument},
		{"elsewhere", "bound", "x", creto.ID{}, fault.FailedPrecondition},
		{"an unknown agent", "key", "x", s.ID(creto.KindAgent, "nobody"), fault.NHINotFound},
		{"a revoked agent", "key", "x", gone, fault.NHINotFound},
		{"a human", "key", "x", s.ID(creto.KindHuman, "alice"), fault.NHINotFound},
		{"an agent of another tenant", "key", "x", s.IDOf("other", creto.KindAgent, "spy"), fault.NHINotFound},
	} {
		info := localnhi.SecretInfo{Tenant: creto.DefaultTenant, Name: nhi.SecretRef(test.secret), Owner: s.ID(creto.KindHuman, "alice")}
		if !test.agent.IsZero() {
			info.Agents = []creto.ID{test.agent}
		}
		if _, err := s.SetSecret(t.Context(), info, creto.NewSecret(test.value)); !errors.Is(err, test.want) {
			t.Errorf("%s: SetSecret = %v, want %v", test.name, err, test.want)
		}
	}
	if list, err := s.Secrets(t.Context(), creto.DefaultTenant); err != nil || len(list) != 1 || list[0].From != "env:X" {
		t.Errorf("Secrets = %+v, %v; want the bound one alone", list, err)
	}
}

// Each look-up has a tenant, also where names are the same.
func TestSecretTenants(t *testing.T) {
	const other = "other"
	s := openSafe(t, localnhi.SecretBinding{Tenant: creto.DefaultTenant, Name: "bound", Source: values{"x": "ours"}, Locator: "x"})
	ours, theirs := s.who(t, creto.DefaultTenant, "bot"), s.who(t, other, "bot")
	s.set(t, creto.DefaultTenant, "key", "ours")
	s.set(t, creto.DefaultTenant, "only", "ours")
	s.set(t, other, "key", "theirs")
	if got, err := get(t.Context(), s.Authority, ours, "key"); err != nil || got != "ours" {
		t.Errorf("our key is %q, %v", got, err)
	}
	if got, err := get(t.Context(), s.Authority, theirs, "key"); err != nil || got != "theirs" {
		t.Errorf("their key is %q, %v", got, err)
	}
	for _, name := range []nhi.SecretRef{"only", "bound"} {
		if got, err := get(t.Context(), s.Authority, theirs, name); !errors.Is(err, fault.NHISecretNotFound) {
			t.Errorf("they get our %s: %q, %v; want NHISecretNotFound", name, got, err)
		}
	}
	if err := s.RemoveSecret(t.Context(), other, "only"); !errors.Is(err, fault.NHISecretNotFound) {
		t.Errorf("RemoveSecret of another tenant's = %v, want NHISecretNotFound", err)
	}
	if list, err := s.Secrets(t.Context(), other); err != nil || len(list) != 1 || list[0].Tenant != other {
		t.Errorf("Secrets of the other tenant = %+v, %v", list, err)
	}
}

// A row that was changed or moved behind the authority's back opens for nobody.
func TestSecretSeal(t *testing.T) {
	for name, edit := range map[string]string{
		"a wider grant":      "UPDATE secret SET agents = '' WHERE name = 'key'",
		"another's grant":    "UPDATE secret SET agents = 'spiffe://test.local/default/agent/spy' WHERE name = 'key'",
		"another owner":      "UPDATE secret SET owner = 'spiffe://test.local/default/human/eve' WHERE name = 'key'",
		"another version":    "UPDATE secret SET version = version + 1 WHERE name = 'key'",
		"another row's seal": "UPDATE secret SET sealed = (SELECT sealed FROM secret WHERE name = 'decoy') WHERE name = 'key'",
		"another tenant":     "UPDATE secret SET tenant = 'other' WHERE name = 'key'",
		"a flipped bit":      "UPDATE secret SET sealed = $1 WHERE name = 'key'",
		"another key's id":   "UPDATE secret SET kek = '00000000000000000000000000000000' WHERE name = 'key'",
	} {
		t.Run(name, func(t *testing.T) {
			s := openSafe(t)
			bot, spy, theirs := s.who(t, creto.DefaultTenant, "bot"), s.who(t, creto.DefaultTenant, "spy"), s.who(t, "other", "bot")
			s.set(t, creto.DefaultTenant, "key", "s3cr3t", bot.ID)
			s.set(t, creto.DefaultTenant, "decoy", "decoy", spy.ID)
			var args []any
			if strings.Contains(edit, "$1") {
				var sealed []byte
				if err := s.db.QueryRowContext(t.Context(), "SELECT sealed FROM secret WHERE name = 'key'").Scan(&sealed); err != nil {
					t.Fatal(err)
				}
				sealed[len(sealed)/2] ^= 1
				args = append(args, sealed)
			}
			if _, err := s.db.ExecContext(t.Context(), edit, args...); err != nil {
				t.Fatal(err)
			}
			for _, who := range []nhi.Identity{bot, spy, theirs} {
				got, err := get(t.Context(), s.Authority, who, "key")
				if err == nil || !errors.Is(err, fault.DataLoss) && !errors.Is(err, fault.NHISecretNotFound) || strings.Contains(err.Error(), "s3cr3t") {
					t.Errorf("%s gets %q, %v; want DataLoss, or NHISecretNotFound from another tenant", who.ID, got, err)
				}
			}
		})
	}
}

// A row of another key-encryption key stays shut, and values are not in the
// files.
func TestSecretAtRest(t *testing.T) {
	s := openSafe(t)
	s.set(t, creto.DefaultTenant, "key", "canary-5f2c")
	if dbtest.Engine(t) == dbtest.SQLite {
		files, err := filepath.Glob(s.file + "*")
		if err != nil || len(files) < 2 { // the database and its journal
			t.Fatalf("the database is %v, %v", files, err)
		}
		for _, file := range files {
			if data, err := os.ReadFile(file); err != nil || bytes.Contains(data, []byte("canary-5f2c")) {
				t.Errorf("%s holds the value, or cannot be read: %v", file, err)
			}
		}
	}
	other, err := localpqc.New().GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		t.Fatal(err)
	}
	// The authority's own keys are out of the way: this is about the secret.
	if _, err := s.db.ExecContext(t.Context(), "DELETE FROM signing_key"); err != nil {
		t.Fatal(err)
	}
	s.Authority = s.open(other)
	who := s.who(t, creto.DefaultTenant, "late")
	if got, err := get(t.Context(), s.Authority, who, "key"); !errors.Is(err, fault.DataLoss) {
		t.Errorf("with another key-encryption key the secret is %q, %v; want DataLoss", got, err)
	}
}

// values is a source that has them.
type values map[string]string

func (v values) Secret(_ context.Context, locator string) (creto.Secret, error) {
	if v[locator] == "" {
		return creto.Secret{}, fault.New("test", fault.NHISecretNotFound, "there is nothing at %s", locator)
	}
	return creto.NewSecret(v[locator]), nil
}

// slow is a source during whose answer something happens.
type slow struct {
	values
	meanwhile func()
}

func (s *slow) Secret(ctx context.Context, locator string) (creto.Secret, error) {
	s.meanwhile()
	return s.values.Secret(ctx, locator)
}

func TestSecretBindings(t *testing.T) {
	source := &slow{values: values{"at": "elsewhere"}, meanwhile: func() {}}
	spy := creto.ID{TrustDomain: "test.local", Tenant: creto.DefaultTenant, Kind: creto.KindAgent, Name: "spy"}
	binding := func(name string, source nhi.SecretSource, locator string, agents ...creto.ID) localnhi.SecretBinding {
		return localnhi.SecretBinding{Tenant: creto.DefaultTenant, Name: nhi.SecretRef(name), Source: source, Locator: locator, Agents: agents, From: "test:" + locator}
	}
	s := openSafe(t, binding("key", source, "at"), binding("gone", source, "secret/path"), binding("spies", source, "at", spy), binding("alias", nil, "stored"))
	bot := s.who(t, creto.DefaultTenant, "bot")
	s.set(t, creto.DefaultTenant, "stored", "in the store", bot.ID)
	for name, want := range map[nhi.SecretRef]string{"key": "elsewhere", "alias": "in the store"} {
		if got, err := get(t.Context(), s.Authority, bot, name); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	_, err := get(t.Context(), s.Authority, bot, "gone")
	if !errors.Is(err, fault.NHISecretNotFound) || strings.Contains(fault.Message(err), "secret/path") || !strings.Contains(fault.Message(err), `"gone"`) {
		t.Errorf("what a source does not have: %v; want NHISecretNotFound, by its name", err)
	}
	if got, err := get(t.Context(), s.Authority, bot, "spies"); !errors.Is(err, fault.NHISecretAccessDenied) {
		t.Errorf("another's secret is %q, %v; want NHISecretAccessDenied", got, err)
	}
	if got, err := get(t.Context(), s.Authority, s.who(t, creto.DefaultTenant, "spy"), "alias"); !errors.Is(err, fault.NHISecretAccessDenied) {
		t.Errorf("another's secret by another name is %q, %v; want NHISecretAccessDenied", got, err)
	}
	// Who is revoked while a source takes its time gets nothing.
	source.meanwhile = func() {
		if err := s.Revoke(t.Context(), bot.ID); err != nil {
			t.Error(err)
		}
	}
	if got, err := get(t.Context(), s.Authority, bot, "key"); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("revoked meanwhile: %q, %v; want NHITokenInvalid", got, err)
	}
	for name, bad := range map[string][]localnhi.SecretBinding{
		"twice":                {binding("key", source, "at"), binding("key", source, "other")},
		"no name":              {binding("a/b", source, "at")},
		"another tenant agent": {binding("key", source, "at", creto.ID{TrustDomain: "test.local", Tenant: "other", Kind: creto.KindAgent, Name: "spy"})},
	} {
		cfg := localnhi.Config{TrustDomain: "test.local", Tenant: creto.DefaultTenant, Secrets: bad}
		if _, err := localnhi.Open(t.Context(), cfg, s.db, localpqc.New(), &consensustest.Manual{}, s.kek); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("Open with bindings with %s = %v, want InvalidArgument", name, err)
		}
	}
}

// A grant that is taken away while others read holds from then on, and nobody
// sees one version's grant with another's value.
func TestSecretGrantRace(t *testing.T) {
	s := openSafe(t)
	bot, spy := s.who(t, creto.DefaultTenant, "bot"), s.who(t, creto.DefaultTenant, "spy")
	s.set(t, creto.DefaultTenant, "key", "both", bot.ID, spy.ID)
	var group sync.WaitGroup
	taken := make(chan struct{})
	for range 4 {
		group.Go(func() {
			for after := false; ; {
				got, err := get(t.Context(), s.Authority, spy, "key")
				switch {
				case err == nil && got != "both":
					t.Errorf("the spy gets %q", got)
				case err == nil && after:
					t.Error("the spy gets a secret that was taken from it")
				case err != nil && !errors.Is(err, fault.NHISecretAccessDenied):
					t.Error(err)
				}
				if after {
					return
				}
				select {
				case <-taken:
					after = true
				default:
				}
			}
		})
	}
	for i := range 20 {
		s.set(t, creto.DefaultTenant, "key", "both", bot.ID, spy.ID)
		s.set(t, creto.DefaultTenant, "key", fmt.Sprint("bot's ", i), bot.ID)
	}
	close(taken)
	group.Wait()
}

// A configuration that adds a grant to a stored secret, under its own name, does
// not keep it from being set; one that leads to another name does.
func TestSecretBoundToItself(t *testing.T) {
	s := openSafe(t)
	s.Authority = s.open(s.kek, localnhi.SecretBinding{Tenant: creto.DefaultTenant, Name: "key", Locator: "key", From: "store:key", Agents: []creto.ID{s.ID(creto.KindAgent, "bot")}},
		localnhi.SecretBinding{Tenant: creto.DefaultTenant, Name: "alias", Locator: "key", From: "store:key"})
	a, bot, other := s.Authority, s.who(t, creto.DefaultTenant, "bot"), s.who(t, creto.DefaultTenant, "other")
	set := func(name nhi.SecretRef) error {
		_, err := a.SetSecret(t.Context(), localnhi.SecretInfo{Tenant: creto.DefaultTenant, Name: name, Owner: a.ID(creto.KindHuman, "alice")}, creto.NewSecret("value"))
		return err
	}
	if err := set("key"); err != nil {
		t.Errorf("SetSecret = %v", err)
	}
	if err := set("alias"); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("SetSecret of an alias = %v", err)
	}
	if value, err := get(t.Context(), a, bot, "key"); value != "value" {
		t.Errorf("who was granted it gets %q, %v", value, err)
	}
	if value, err := get(t.Context(), a, other, "key"); !errors.Is(err, fault.NHISecretAccessDenied) {
		t.Errorf("who was not gets %q, %v", value, err)
	}
}
