package etcdconsensus

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
)

// Etcd is how to reach one.
type Etcd struct {
	// Endpoints are host:port. Required.
	Endpoints []string
	// TLS encrypts; nil is plaintext.
	TLS *tls.Config
	// Username and Password log in; none is needed where etcd has no users.
	Username string
	Password creto.Secret
}

// Open makes a node of the cluster that e keeps. It connects when it is first
// used. The caller runs Run, and ends with Close.
//
// Errors: InvalidArgument (Permanent) for a configuration that is incomplete.
func Open(e Etcd, config Config) (*Clock, error) {
	const op fault.Op = "etcdconsensus.Open"
	if len(e.Endpoints) == 0 || config.Node == "" || config.Prefix == "" {
		return nil, fault.New(op, fault.InvalidArgument, "an etcd clock needs endpoints, a node and a prefix")
	}
	scheme := "http://"
	if e.TLS != nil {
		scheme = "https://"
	}
	c := clientv3.Config{
		TLS: e.TLS, Username: e.Username, Password: e.Password.Reveal(), Logger: zap.NewNop(),
		DialTimeout: config.renewal(), DialKeepAliveTime: config.ttl(), DialKeepAliveTimeout: config.renewal(),
	}
	for _, endpoint := range e.Endpoints {
		c.Endpoints = append(c.Endpoints, scheme+endpoint)
	}
	client, err := clientv3.New(c)
	if err != nil {
		// The text of a foreign error may have the password in it.
		return nil, fault.New(op, fault.InvalidArgument, "etcd at %q cannot be used: are the addresses host:port, and is the login right?", e.Endpoints)
	}
	source := newSystemTime()
	return newClock(config, &etcd{client: client, prefix: config.Prefix, timeout: config.renewal(), time: source}, source), nil
}

func newClock(config Config, s store, source timeSource) *Clock {
	return &Clock{config: config, store: s, time: source}
}

// systemTime is the machine's.
type systemTime struct{ boot int64 }

func newSystemTime() systemTime { return systemTime{boot: bootTime()} }

func (systemTime) wall() int64    { return time.Now().UnixNano() }
func (s systemTime) awake() int64 { return bootTime() - s.boot }

func (systemTime) sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// bootTime reads CLOCK_BOOTTIME: unlike Go's clock it goes on while the machine
// sleeps, which is when a lease ends unseen.
func bootTime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux since 2.6.39 has it
	}
	return ts.Nano()
}

// etcd is the store. Keys, below the prefix:
//
//	leader    who leads, with a lease; its create revision is the fence
//	term      the newest term
//	mark      Unix nanoseconds; no Physical was ever later
//	farewell  the newest term that ended in order: no window is open, of it or of
//	          those before
//	event/ID  an event's stamp
type etcd struct {
	client  *clientv3.Client
	prefix  string
	timeout time.Duration
	time    timeSource
}

func (e *etcd) key(name string) string { return e.prefix + name }

func (e *etcd) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, e.timeout)
}

func (e *etcd) leader(ctx context.Context) (leader, error) {
	const op fault.Op = "etcdconsensus.leader"
	ctx, cancel := e.bound(ctx)
	defer cancel()
	got, err := e.client.Get(ctx, e.key("leader"))
	if err != nil {
		return leader{}, classify(op, err)
	}
	if len(got.Kvs) == 0 {
		return leader{}, nil
	}
	var who leader
	if err := json.Unmarshal(got.Kvs[0].Value, &who); err != nil {
		return leader{}, damaged(op, "leader", err)
	}
	return who, nil
}

func (e *etcd) campaign(ctx context.Context, me leader, ttl time.Duration, floor uint64) (*grant, error) {
	const op fault.Op = "etcdconsensus.campaign"
	ctx, cancel := e.bound(ctx)
	defer cancel()
	now, err := e.client.Get(ctx, e.key("term"))
	if err != nil {
		return nil, classify(op, err)
	}
	var term uint64
	var revision int64
	if len(now.Kvs) > 0 {
		revision = now.Kvs[0].ModRevision
		if term, err = strconv.ParseUint(string(now.Kvs[0].Value), 10, 64); err != nil {
			return nil, damaged(op, "term", err)
		}
	}
	next, err := nextTerm(term, floor)
	if err != nil {
		return nil, err
	}
	g := &grant{term: next, leased: e.time.awake()}
	lease, err := e.client.Grant(ctx, int64((ttl+time.Second-1)/time.Second))
	if err != nil {
		return nil, classify(op, err)
	}
	g.lease, g.ttl = int64(lease.ID), time.Duration(lease.TTL)*time.Second
	if err := e.elect(ctx, g, me, revision, term); err != nil {
		// Whether it was elected is not known: it makes sure that it was not.
		give, cancel := e.bound(context.WithoutCancel(ctx))
		defer cancel()
		_, _ = e.client.Revoke(give, lease.ID) // else it ends by itself
		if errors.Is(err, errFenced) {
			return nil, nil //nolint:nilnil // as documented: another leads
		}
		return nil, err
	}
	return g, nil
}

// elect is the transaction in which a leader begins a term.
func (e *etcd) elect(ctx context.Context, g *grant, me leader, revision int64, before uint64) error {
	const op fault.Op = "etcdconsensus.elect"
	value, err := json.Marshal(me)
	if err != nil {
		return fault.Wrap(op, err)
	}
	done, err := e.client.Txn(ctx).If(
		clientv3.Compare(clientv3.CreateRevision(e.key("leader")), "=", 0),
		clientv3.Compare(clientv3.ModRevision(e.key("term")), "=", revision),
	).Then(
		clientv3.OpPut(e.key("leader"), string(value), clientv3.WithLease(clientv3.LeaseID(g.lease))),
		clientv3.OpPut(e.key("term"), strconv.FormatUint(g.term, 10)),
		clientv3.OpGet(e.key("mark")),
		clientv3.OpGet(e.key("farewell")),
	).Commit()
	if err != nil {
		return classify(op, err)
	}
	if !done.Succeeded {
		return errFenced
	}
	g.fence = done.Header.Revision
	if kvs := done.Responses[2].GetResponseRange().Kvs; len(kvs) > 0 {
		if g.mark, err = strconv.ParseInt(string(kvs[0].Value), 10, 64); err != nil {
			return damaged(op, "mark", err)
		}
	}
	kvs := done.Responses[3].GetResponseRange().Kvs
	g.clean = before == 0 || len(kvs) > 0 && string(kvs[0].Value) == strconv.FormatUint(before, 10)
	return nil
}

// leads are the conditions that nobody else leads, or led, since g.
func (e *etcd) leads(g *grant) []clientv3.Cmp {
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.CreateRevision(e.key("leader")), "=", g.fence),
		clientv3.Compare(clientv3.Value(e.key("term")), "=", strconv.FormatUint(g.term, 10)),
	}
}

func (e *etcd) renew(ctx context.Context, g *grant, mark int64) error {
	const op fault.Op = "etcdconsensus.renew"
	ctx, cancel := e.bound(ctx)
	defer cancel()
	asked := e.time.awake()
	kept, err := e.client.KeepAliveOnce(ctx, clientv3.LeaseID(g.lease))
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return errFenced
	}
	if err != nil {
		return classify(op, err)
	}
	done, err := e.client.Txn(ctx).If(e.leads(g)...).Then(clientv3.OpPut(e.key("mark"), strconv.FormatInt(mark, 10))).Commit()
	if err != nil {
		return classify(op, err)
	}
	if !done.Succeeded {
		return errFenced
	}
	g.leased, g.ttl = asked, time.Duration(kept.TTL)*time.Second
	return nil
}

func (e *etcd) resign(ctx context.Context, g *grant, mark int64) error {
	const op fault.Op = "etcdconsensus.resign"
	ctx, cancel := e.bound(ctx)
	defer cancel()
	changes := []clientv3.Op{clientv3.OpDelete(e.key("leader")), clientv3.OpPut(e.key("mark"), strconv.FormatInt(mark, 10))}
	if g.clean {
		changes = append(changes, clientv3.OpPut(e.key("farewell"), strconv.FormatUint(g.term, 10)))
	}
	_, err := e.client.Txn(ctx).If(e.leads(g)...).Then(changes...).Commit()
	if err != nil {
		return classify(op, err)
	}
	_, _ = e.client.Revoke(ctx, clientv3.LeaseID(g.lease)) // nothing hangs on it any more
	return nil
}

func (e *etcd) changed(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for answer := range e.client.Watch(clientv3.WithRequireLeader(ctx), e.key("leader")) {
		if len(answer.Events) > 0 {
			return
		}
	}
	<-ctx.Done() // a watch that breaks at once must not make Run spin
}

// events are what a cluster keeps of registered events.
type events interface {
	// register keeps the first stamp of an event and returns it.
	register(ctx context.Context, id consensus.EventID, s creto.Timestamp) (creto.Timestamp, error)
	// events returns what was kept.
	events(ctx context.Context, ids []consensus.EventID) ([]consensus.Ordered, error)
	close() error
}

func (e *etcd) eventKey(id consensus.EventID) string { return e.key("event/" + id.String()) }

func (e *etcd) register(ctx context.Context, id consensus.EventID, s creto.Timestamp) (creto.Timestamp, error) {
	const op fault.Op = "etcdconsensus.Register"
	ctx, cancel := e.bound(ctx)
	defer cancel()
	value, err := json.Marshal(s)
	if err != nil {
		return creto.Timestamp{}, fault.Wrap(op, err)
	}
	key := e.eventKey(id)
	done, err := e.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, string(value))).Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return creto.Timestamp{}, classify(op, err)
	}
	if done.Succeeded {
		return s, nil
	}
	var first creto.Timestamp
	if err := json.Unmarshal(done.Responses[0].GetResponseRange().Kvs[0].Value, &first); err != nil {
		return creto.Timestamp{}, damaged(op, "event", err)
	}
	return first, nil
}

// maxOps is how many keys one transaction may read, as etcd is configured if
// nobody changed it.
const maxOps = 128

func (e *etcd) events(ctx context.Context, ids []consensus.EventID) ([]consensus.Ordered, error) {
	const op fault.Op = "etcdconsensus.OrderEvents"
	ctx, cancel := e.bound(ctx)
	defer cancel()
	// What was registered does not change: several transactions see what one would.
	var found []consensus.Ordered
	for len(ids) > 0 {
		n := min(len(ids), maxOps)
		gets := make([]clientv3.Op, n)
		for i, id := range ids[:n] {
			gets[i] = clientv3.OpGet(e.eventKey(id))
		}
		done, err := e.client.Txn(ctx).Then(gets...).Commit()
		if err != nil {
			return nil, classify(op, err)
		}
		for i, id := range ids[:n] {
			kvs := done.Responses[i].GetResponseRange().Kvs
			if len(kvs) == 0 {
				return nil, consensus.Unregistered(op, id)
			}
			o := consensus.Ordered{ID: id}
			if err := json.Unmarshal(kvs[0].Value, &o.Stamp); err != nil {
				return nil, damaged(op, "event", err)
			}
			found = append(found, o)
		}
		ids = ids[n:]
	}
	return found, nil
}

func (e *etcd) close() error {
	return fault.Wrap("etcdconsensus.Close", e.client.Close())
}

// classify says what an error of etcd means to a clock. Its text stays local: a
// client's may name users.
func classify(op fault.Op, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return fault.Wrap(op, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, rpctypes.ErrTimeout), errors.Is(err, rpctypes.ErrTimeoutDueToLeaderFail):
		return fault.WrapAs(op, fault.ConsensusTimeout, err, "etcd is slow")
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrUserEmpty):
		return fault.WrapAs(op, fault.ConsensusUnavailable, err, "etcd refuses the configured user")
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fault.WrapAs(op, fault.ConsensusUnavailable, err, "etcd is full")
	}
	return fault.WrapAs(op, fault.ConsensusUnavailable, err, "etcd cannot be reached")
}

func damaged(op fault.Op, what string, err error) error {
	return fault.WrapAs(op, fault.ConsensusUnavailable, cmp.Or(err, errors.New("not a number")), "etcd has a %s that this creto cannot read", what)
}
