package login

import (
	"context"
	"crypto/rand"
	"strings"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/consensus"
	"creto.dev/fault"
)

// How a command line logs in (RFC 8628): it shows a code and an address, its
// human confirms the code in a browser, and meanwhile it asks every
// DeviceInterval.
const (
	DeviceTTL      = 10 * time.Minute
	DeviceInterval = 2 * time.Second
)

// Bounds of what may be under way, and of wrong codes by one human in
// DeviceTTL.
const (
	maxDevices    = 1024
	maxWrongCodes = 10
	maxClientName = 128
)

// codeAlphabet has no vowels and no digits (RFC 8628, section 6.1): 20^8 codes.
const codeAlphabet = "BCDFGHJKLMNPQRSTVWXZ"

// Devices are command lines on their way to a session. They live in memory only:
// anybody may begin, and beyond the bound the oldest ends. Safe for concurrent
// use.
type Devices struct {
	sessions *Sessions
	clock    consensus.Clock
	log      audit.Log

	mu    sync.Mutex // guards what follows
	list  []*device  // the oldest first
	wrong map[creto.ID]*guesses
}

// device is one command line.
type device struct {
	code     creto.Digest // of the device code
	userCode string
	client   string
	expires  time.Time
	human    creto.ID // who confirmed it
	declined bool
}

// guesses counts one human's wrong codes.
type guesses struct {
	count int
	until time.Time
}

// NewDevices returns the devices whose sessions are s's.
func NewDevices(s *Sessions, clock consensus.Clock, log audit.Log) *Devices {
	return &Devices{sessions: s, clock: clock, log: log, wrong: make(map[creto.ID]*guesses)}
}

// Device is what a command line gets first: Code to ask with, and UserCode to
// show.
type Device struct {
	Code, UserCode string
	Expires        time.Time
}

// Begin begins a login. client says what asks, in its own words.
//
// Errors: those of the clock.
func (d *Devices) Begin(ctx context.Context, client string) (Device, error) {
	now, err := d.clock.Now(ctx)
	if err != nil {
		return Device{}, fault.Wrap("login.Devices.Begin", err)
	}
	code := newSecret()
	one := &device{code: creto.DigestOf([]byte(code)), userCode: newUserCode(), client: strings.ToValidUTF8(client[:min(len(client), maxClientName)], "?"), expires: now.Time().Add(DeviceTTL)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweep(now.Time())
	if len(d.list) >= maxDevices {
		d.list = d.list[1:]
	}
	d.list = append(d.list, one)
	return Device{Code: code, UserCode: one.userCode, Expires: one.expires}, nil
}

// newUserCode returns eight letters, drawn evenly.
func newUserCode() string {
	const even = 256 - 256%len(codeAlphabet)
	var code []byte
	for len(code) < 8 {
		var raw [16]byte
		_, _ = rand.Read(raw[:]) // documented never to return an error
		for _, b := range raw {
			if int(b) < even && len(code) < 8 {
				code = append(code, codeAlphabet[int(b)%len(codeAlphabet)])
			}
		}
	}
	return string(code[:4]) + "-" + string(code[4:])
}

// sweep forgets what ended. The caller holds mu.
func (d *Devices) sweep(now time.Time) {
	for len(d.list) > 0 && !now.Before(d.list[0].expires) {
		d.list = d.list[1:]
	}
	for human, g := range d.wrong {
		if !now.Before(g.until) {
			delete(d.wrong, human)
		}
	}
}

// waiting finds the command line of a code that a human typed.
//
// Errors: NotFound (Permanent); ResourceExhausted (Transient) after too many
// wrong ones.
func (d *Devices) waiting(now time.Time, human creto.ID, userCode string) (*device, error) {
	const op fault.Op = "login.Devices.waiting"
	d.sweep(now)
	g := d.wrong[human]
	if g != nil && g.count >= maxWrongCodes {
		return nil, fault.New(op, fault.ResourceExhausted, "too many wrong codes; wait %d minutes", int(DeviceTTL.Minutes()))
	}
	typed := strings.ToUpper(strings.NewReplacer("-", "", " ", "").Replace(userCode))
	for _, one := range d.list {
		if strings.ReplaceAll(one.userCode, "-", "") == typed && one.human.IsZero() && !one.declined {
			return one, nil
		}
	}
	if g == nil {
		g = &guesses{until: now.Add(DeviceTTL)}
		d.wrong[human] = g
	}
	g.count++
	return nil, fault.New(op, fault.NotFound, "no command line waits with this code; they last %d minutes", int(DeviceTTL.Minutes()))
}

// Client returns what the command line with a code says of itself.
//
// Errors: NotFound (Permanent); ResourceExhausted (Transient) after too many
// wrong codes.
func (d *Devices) Client(ctx context.Context, human creto.ID, userCode string) (string, error) {
	now, err := d.clock.Now(ctx)
	if err != nil {
		return "", fault.Wrap("login.Devices.Client", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	one, err := d.waiting(now.Time(), human, userCode)
	if err != nil {
		return "", err
	}
	return one.client, nil
}

// Answer lets the command line with a code be s's human, or refuses it. Saying
// yes takes a session that is fresh: its token must not make others.
//
// Errors: those of Client; PermissionDenied (Security) for a session that is not
// fresh.
func (d *Devices) Answer(ctx context.Context, s Session, userCode string, yes bool) error {
	const op fault.Op = "login.Devices.Answer"
	if yes && !s.Fresh {
		return errNotFresh(op)
	}
	now, err := d.clock.Now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	client, err := func() (string, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		one, err := d.waiting(now.Time(), s.Human, userCode)
		if err != nil {
			return "", err
		}
		if one.declined = !yes; yes {
			one.human = s.Human
		}
		return one.client, nil
	}()
	if err != nil || !yes {
		return err
	}
	_, err = d.log.Log(ctx, audit.Record{
		Who: s.Human, What: audit.EventLoggedIn, Resource: "Human::" + s.Human.Name, Outcome: audit.Success,
		Detail: map[string]string{"method": string(MethodToken), "client": client, "by": string(s.Method)},
	})
	return fault.Wrap(op, err)
}

// Token returns the session's token, once, for a device code whose human said
// yes.
//
// Errors: Unavailable (Degraded) with ErrDevicePending while nobody answered;
// PermissionDenied (Security) if they said no; NotFound (Permanent) for a code
// that is unknown, old or spent.
func (d *Devices) Token(ctx context.Context, code string) (string, time.Time, error) {
	const op fault.Op = "login.Devices.Token"
	now, err := d.clock.Now(ctx)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	human, err := d.spend(now.Time(), creto.DigestOf([]byte(code)))
	if err != nil {
		return "", time.Time{}, err
	}
	return d.sessions.New(ctx, human, MethodToken)
}

// ErrDevicePending says that a command line's human has not answered yet.
var ErrDevicePending = fault.New("login.Devices.Token", fault.Unavailable, "nobody has confirmed this login yet")

// spend ends a device whose human answered.
func (d *Devices) spend(now time.Time, code creto.Digest) (creto.ID, error) {
	const op fault.Op = "login.Devices.spend"
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweep(now)
	for i, one := range d.list {
		if one.code != code {
			continue
		}
		if one.human.IsZero() && !one.declined {
			return creto.ID{}, ErrDevicePending
		}
		d.list = append(d.list[:i:i], d.list[i+1:]...)
		if one.declined {
			return creto.ID{}, fault.New(op, fault.PermissionDenied, "this login was refused in the browser")
		}
		return one.human, nil
	}
	return creto.ID{}, fault.New(op, fault.NotFound, "this login is over; begin again with: creto login")
}
