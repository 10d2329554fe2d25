package localaudit

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/logkey"
	"creto.dev/pqc"
)

// people knows the pseudonyms and keys of those that records name.
type people struct {
	db  *sql.DB
	pqc pqc.Provider
	kek pqc.SymmetricKey

	mu    sync.Mutex // guards what follows
	byID  map[creto.UUID]audit.Subject
	byWho map[creto.ID]audit.Subject
	// fresh are those that a transaction made that is not committed yet.
	fresh []creto.ID
	// gone counts how often somebody was forgotten: what was sealed for them before
	// must be sealed again, unless it is in the tree.
	gone uint64
}

func newPeople(d *sql.DB, p pqc.Provider, kek pqc.SymmetricKey) *people {
	return &people{db: d, pqc: p, kek: kek, byID: make(map[creto.UUID]audit.Subject), byWho: make(map[creto.ID]audit.Subject)}
}

// subjectKeyBytes is the length of a person's key.
const subjectKeyBytes = 32

// sealedFor binds a person's sealed key to its row.
func sealedFor(id creto.UUID) []byte { return append([]byte("creto/audit/subject/v1\x00"), id[:]...) }

// subject returns a person's pseudonym and key, and makes them inside tx if
// there are none. The caller calls settle when tx has ended.
func (p *people) subject(ctx context.Context, tx *sql.Tx, principal creto.ID) (audit.Subject, error) {
	const op fault.Op = "localaudit.subject"
	p.mu.Lock()
	defer p.mu.Unlock()
	if s, ok := p.byWho[principal]; ok {
		return s, nil
	}
	s, err := p.load(ctx, tx, "principal = $1", principal.String())
	if err == nil {
		p.keep(principal, s)
		return s, nil
	}
	if !errors.Is(err, fault.AuditNotFound) {
		return audit.Subject{}, err
	}
	s = audit.Subject{ID: creto.NewUUID(), Key: make([]byte, subjectKeyBytes)}
	_, _ = rand.Read(s.Key) // never fails
	sealed, err := p.pqc.Encrypt(s.Key, sealedFor(s.ID), p.kek)
	if err != nil {
		return audit.Subject{}, fault.Wrap(op, err)
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO audit_subject (id, principal, sealed) VALUES ($1, $2, $3)", s.ID[:], principal.String(), sealed.Bytes); err != nil {
		return audit.Subject{}, db.Classify(op, err)
	}
	p.fresh = append(p.fresh, principal)
	p.keep(principal, s)
	return s, nil
}

// known returns those whom records name, if there is a key of each already, and how
// often somebody was forgotten before.
func (p *people) known(records []waiting) (subjects map[creto.ID]audit.Subject, gone uint64, all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	subjects = make(map[creto.ID]audit.Subject)
	for i := range records {
		for _, person := range records[i].people {
			if _, ok := subjects[person]; ok {
				continue
			}
			s, ok := p.byWho[person]
			if !ok {
				return nil, 0, false
			}
			subjects[person] = s
		}
	}
	return subjects, p.gone, true
}

// forgot returns how often somebody was forgotten.
func (p *people) forgot() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone
}

// maxPeople bounds the memory of keys; beyond it they are read again.
const maxPeople = 10_000

func (p *people) keep(principal creto.ID, s audit.Subject) {
	if len(p.byWho) >= maxPeople {
		clear(p.byWho)
		clear(p.byID)
	}
	// A part of a batch must not keep all of it in memory.
	principal = creto.ID{
		TrustDomain: strings.Clone(principal.TrustDomain), Tenant: strings.Clone(principal.Tenant),
		Kind: creto.Kind(strings.Clone(string(principal.Kind))), Name: strings.Clone(principal.Name),
	}
	p.byWho[principal], p.byID[s.ID] = s, s
}

// settle ends a transaction: what it made is there, or is forgotten.
func (p *people) settle(committed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !committed {
		p.gone++
		for _, principal := range p.fresh {
			delete(p.byID, p.byWho[principal].ID)
			delete(p.byWho, principal)
		}
	}
	p.fresh = nil
}

// load reads one person; AuditNotFound without a key.
func (p *people) load(ctx context.Context, q querier, where string, arg any) (audit.Subject, error) {
	const op fault.Op = "localaudit.load"
	var id, sealed []byte
	err := q.QueryRowContext(ctx, "SELECT id, sealed FROM audit_subject WHERE "+where, arg).Scan(&id, &sealed)
	if errors.Is(err, sql.ErrNoRows) || err == nil && sealed == nil {
		return audit.Subject{}, fault.New(op, fault.AuditNotFound, "the log has no key of that person")
	}
	if err != nil {
		return audit.Subject{}, db.Classify(op, err)
	}
	if len(id) != len(creto.UUID{}) {
		return audit.Subject{}, fault.New(op, fault.DataLoss, "a person's row in the audit log is damaged")
	}
	s := audit.Subject{ID: creto.UUID(id)}
	if s.Key, err = p.pqc.Decrypt(pqc.EncryptedData{Algorithm: p.kek.Algorithm, Key: p.kek.ID, Bytes: sealed}, sealedFor(s.ID), p.kek); err != nil {
		return audit.Subject{}, fault.WrapAs(op, fault.DataLoss, err, "a person's key in the audit log is damaged")
	}
	return s, nil
}

// recordKey returns the key of one box, or nil if the person was erased.
func (p *people) recordKey(ctx context.Context, record audit.RecordID, subject creto.UUID) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.byID[subject]
	if !ok {
		var err error
		s, err = p.load(ctx, p.db, "id = $1", subject[:])
		if errors.Is(err, fault.AuditNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if len(p.byID) >= maxPeople {
			clear(p.byID)
		}
		p.byID[subject] = s
	}
	return s.RecordKey(record)
}

// open returns the record with what is personal, as far as the keys exist.
func (p *people) open(ctx context.Context, r audit.Record) (audit.Record, error) {
	var failed error
	opened, err := r.Open(func(box audit.Personal) []byte {
		key, err := p.recordKey(ctx, r.ID, box.Subject)
		failed = errors.Join(failed, err)
		return key
	})
	if failed != nil {
		return audit.Record{}, failed
	}
	return opened, err
}

// pseudonyms returns how leaves name the humans of that name or SPIFFE id.
func (p *people) pseudonyms(ctx context.Context, human string) ([]string, error) {
	const op fault.Op = "localaudit.pseudonyms"
	// A pseudonym is asked for as it is: an erased person has nothing else.
	names := []string{human}
	if strings.ContainsRune(human, 0) { // which PostgreSQL takes in no text
		return names, nil
	}
	rows, err := p.db.QueryContext(ctx, "SELECT id, principal FROM audit_subject WHERE principal = $1 OR principal LIKE $2 ESCAPE '!'", human, "%/human/"+escapeLike(human))
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id []byte
		var text string
		if err := rows.Scan(&id, &text); err != nil {
			return nil, db.Classify(op, err)
		}
		principal, err := creto.ParseID(text)
		if err != nil || len(id) != len(creto.UUID{}) {
			return nil, fault.New(op, fault.DataLoss, "a person's row in the audit log is damaged")
		}
		names = append(names, audit.Pseudonym(principal, creto.UUID(id)).String())
	}
	return names, db.Classify(op, rows.Err())
}

// Disclose returns the keys of an entry's boxes, for a bundle whose readers may
// see them.
//
// Errors: AuditUnavailable (Degraded).
func (l *Log) Disclose(ctx context.Context, e audit.Entry) ([]audit.Disclosure, error) {
	const op fault.Op = "localaudit.Disclose"
	var keys []audit.Disclosure
	for _, box := range e.Record.Personal {
		key, err := l.people.recordKey(ctx, e.Record.ID, box.Subject)
		if err != nil {
			return nil, unavailable(op, err)
		}
		if key != nil {
			keys = append(keys, audit.Disclosure{Index: e.Index, Subject: box.Subject, Key: key})
		}
	}
	return keys, nil
}

// Erase destroys what lets the log's personal fields of a human be read, for
// ever and in every copy of the log (R-GAP-11). by asks for it. Every proof
// still holds. What the human does afterwards is a new person's. It returns the
// pseudonym.
//
// Copies of the database itself, such as backups, still have the key.
//
// Errors: AuditNotFound (Permanent) if the log does not know the human;
// AuditUnavailable (Degraded).
func (l *Log) Erase(ctx context.Context, human, by creto.ID) (creto.ID, error) {
	const op fault.Op = "localaudit.Erase"
	// What waits is sealed first, so that nothing of it needs the key later.
	if err := l.Flush(ctx); err != nil {
		return creto.ID{}, err
	}
	l.people.mu.Lock()
	s, err := l.people.load(ctx, l.db, "principal = $1", human.String())
	l.people.mu.Unlock()
	if errors.Is(err, fault.AuditNotFound) {
		// Perhaps somebody asks again because the last step failed.
		return creto.ID{}, errors.Join(err, unavailable(op, db.Scrub(ctx, l.db)))
	}
	if err != nil {
		return creto.ID{}, unavailable(op, err)
	}
	pseudonym := audit.Pseudonym(human, s.ID)
	now, err := l.clock.Now(ctx)
	if err != nil {
		return creto.ID{}, fault.Wrap(op, err)
	}
	r := audit.Record{Stamp: now, Who: by, What: audit.EventSubjectErased, Resource: "Human::" + pseudonym.Name, Outcome: audit.Success}
	if by == human {
		r.Who = l.cfg.Self // or this record would need the key
	}
	if _, err := l.Log(ctx, r); err != nil {
		return creto.ID{}, err
	}
	if err := l.destroy(ctx, s.ID, now.Physical); err != nil {
		return creto.ID{}, unavailable(op, err)
	}
	l.people.forget(human, s.ID)
	if err := db.Scrub(ctx, l.db); err != nil {
		return pseudonym, unavailable(op, err)
	}
	l.log.LogAttrs(ctx, slog.LevelInfo, "a person was erased from the audit log", slog.String(logkey.Principal, pseudonym.Name))
	return pseudonym, nil
}

func (l *Log) destroy(ctx context.Context, subject creto.UUID, at int64) error {
	const op fault.Op = "localaudit.destroy"
	result, err := l.db.ExecContext(ctx, "UPDATE audit_subject SET sealed = NULL, principal = NULL, erased_ns = $2 WHERE id = $1", subject[:], at)
	if err != nil {
		return db.Classify(op, err)
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return fault.New(op, fault.AuditUnavailable, "%s rows were erased, not 1", strconv.FormatInt(n, 10))
	}
	return nil
}

// forget drops a person's key. It is not overwritten: a batch that is under way
// may be sealing with it.
func (p *people) forget(principal creto.ID, id creto.UUID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone++
	delete(p.byID, id)
	if p.byWho[principal].ID == id { // else whoever they are by now
		delete(p.byWho, principal)
	}
}
