package db

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"creto.dev/fault"
)

// OpenHeldBriefly is OpenHeld with times a tenth as long.
func OpenHeldBriefly(ctx context.Context, location string, holder Holder) (*sql.DB, *Hold, error) {
	p, err := parsePostgres(location)
	if err != nil {
		return nil, nil, err
	}
	return p.hold(ctx, holder, holdTimes{holdAsk / 10, holdFor / 10, holdWait / 10, holdPatience / 10})
}

// Lose has the server free the lock, as when it loses the session.
func (h *Hold) Lose(ctx context.Context) error {
	_, err := h.conn.Exec(ctx, "SELECT pg_advisory_unlock("+holderKey+")")
	return err
}

// Fresh is Check without a question.
func (h *Hold) Fresh() bool { return h.fresh() }

// The defaults hold the promise that a holder stops before the next begins, with
// a tenth for two clocks that drift.
func TestHoldTimes(t *testing.T) {
	if holdWait < holdFor*11/10 || holdAsk*2 > holdFor {
		t.Errorf("a holder asks every %v and acts for %v, the next waits %v", holdAsk, holdFor, holdWait)
	}
}

func TestNearby(t *testing.T) {
	for location, want := range map[string]bool{
		"postgres://u:p@db.example/x":                        true,
		"postgres://u:p@192.0.2.1/x?connect_timeout=3":       true,
		"postgres://u:p@db.example/x?sslmode=disable":        false,
		"postgres://u:p@localhost/x":                         false,
		"postgres://u:p@127.0.0.1/x":                         false,
		"postgres://u:p@[::1]/x":                             false,
		"postgres:///x?host=/run/postgresql&user=u":          false,
		"postgres://u:p@localhost.example/x":                 true,
		"postgresql://u:p@db.example/x?application_name=foo": true,
	} {
		p, err := parsePostgres(location)
		if err != nil {
			t.Fatal(location, err)
		}
		verified := p.config.TLSConfig != nil && !p.config.TLSConfig.InsecureSkipVerify && p.config.TLSConfig.ServerName != ""
		for _, f := range p.config.Fallbacks {
			verified = verified && f.TLSConfig != nil && !f.TLSConfig.InsecureSkipVerify
		}
		if verified != want {
			t.Errorf("%s: the server is verified: %v, want %v", location, verified, want)
		}
	}
}

func TestClassifyUnknown(t *testing.T) {
	if err := Classify("test", errors.New("something")); !errors.Is(err, fault.Internal) {
		t.Errorf("an unknown error = %v, want Internal", err)
	}
}
