// Package login knows humans: who is logged in ([Sessions]), and how they prove
// who they are ([Passkeys], by WebAuthn, and [Providers], by OpenID Connect).
// What only a present human may do hangs on it: a delegation waits in
// [Delegations] until its human confirms exactly that.
package login

import (
	"crypto/rand"
	"encoding/base64"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/fault"
)

// Method is how a session's human was known.
type Method string

// The methods of a login.
const (
	// MethodBootstrap: a one-time login from whoever holds the data directory.
	MethodBootstrap Method = "bootstrap"
	MethodPasskey   Method = "passkey"
	MethodOIDC      Method = "oidc"
	// MethodToken: another session, or a command line, was given this one. It
	// proves nobody's presence.
	MethodToken Method = "token"
)

// FreshFor is how long after proving who they are a human may change how they
// are known.
const FreshFor = 5 * time.Minute

// ceremonyTTL is how long a human may take over one ceremony.
const ceremonyTTL = 5 * time.Minute

// maxCeremonies bounds what is kept of ceremonies under way. Anybody may begin
// one; beyond the bound the oldest ends.
const maxCeremonies = 4096

// newSecret returns 256 random bits in base64url.
func newSecret() string {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // documented never to return an error
	return base64.RawURLEncoding.EncodeToString(raw[:])
}

// ceremonies are those under way: what was asked, to be compared with the
// answer. Each ends with its first answer. They live in memory only, so that
// who asks for many costs no disk; after a restart a human begins again.
type ceremonies[T any] struct {
	mu    sync.Mutex // guards open and order
	open  map[creto.Digest]ceremony[T]
	order []creto.Digest
}

// ceremony is one under way, in one browser.
type ceremony[T any] struct {
	browser creto.Digest
	expires time.Time
	asked   T
}

// begin keeps what is asked of a browser, and returns the name by which its
// answer is found.
func (c *ceremonies[T]) begin(now time.Time, browser string, asked T) string {
	name := newSecret()
	key := creto.DigestOf([]byte(name))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = make(map[creto.Digest]ceremony[T])
	}
	for len(c.order) > 0 {
		oldest, ok := c.open[c.order[0]]
		if ok && now.Before(oldest.expires) && len(c.order) < maxCeremonies {
			break
		}
		delete(c.open, c.order[0])
		c.order = c.order[1:]
	}
	c.open[key] = ceremony[T]{browser: creto.DigestOf([]byte(browser)), expires: now.Add(ceremonyTTL), asked: asked}
	c.order = append(c.order, key)
	return name
}

// take ends a ceremony and returns what was asked.
//
// Errors: Unauthenticated (Permanent) for one that is unknown, old, answered, or
// another browser's.
func (c *ceremonies[T]) take(now time.Time, browser, name string) (T, error) {
	key := creto.DigestOf([]byte(name))
	c.mu.Lock()
	defer c.mu.Unlock()
	found, ok := c.open[key]
	delete(c.open, key)
	if !ok || browser == "" || !now.Before(found.expires) || found.browser != creto.DigestOf([]byte(browser)) {
		var none T
		return none, fault.New("login.take", fault.Unauthenticated, "this took too long, or was answered already; begin again")
	}
	return found.asked, nil
}
