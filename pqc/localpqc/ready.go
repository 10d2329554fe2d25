package localpqc

import (
	"crypto/subtle"
	"sync"

	"creto.dev/pqc"
)

// maxReady bounds the keys of one kind that are kept ready: the most recent
// ones of a busy node. An expanded ML-DSA-65 key takes some 50 KiB.
const maxReady = 128

// ready keeps keys as their algorithms want them. To expand an ML-DSA public key
// takes longer than to verify with it. What is kept was checked against its id.
//
// Secret keys are kept too. That weakens nothing: whoever reads this process's
// memory finds the key that opens them all. Safe for concurrent use.
type ready[V any] struct {
	mu   sync.RWMutex // guards keys
	keys map[readyKey]readyValue[V]
}

type readyKey struct {
	algorithm pqc.Algorithm
	id        pqc.KeyID
}

type readyValue[V any] struct {
	bytes []byte // to which the id was found to belong
	key   V
}

func newReady[V any]() *ready[V] {
	return &ready[V]{keys: make(map[readyKey]readyValue[V], maxReady)}
}

// get returns the key of these bytes, made by expand if it is not there. expand
// also checks that the id is the key's own, and is not called while locked.
func (r *ready[V]) get(algorithm pqc.Algorithm, id pqc.KeyID, bytes []byte, expand func(bytes []byte) (V, error)) (V, error) {
	at := readyKey{algorithm, id}
	r.mu.RLock()
	found, ok := r.keys[at]
	r.mu.RUnlock()
	if ok && subtle.ConstantTimeCompare(found.bytes, bytes) == 1 {
		return found.key, nil
	}
	// What expand keeps must not change with the caller's bytes.
	own := append([]byte(nil), bytes...)
	key, err := expand(own)
	if err != nil {
		return key, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.keys[at]; !ok && len(r.keys) >= maxReady {
		for other := range r.keys { // whichever: recency would cost more than it saves
			delete(r.keys, other)
			break
		}
	}
	r.keys[at] = readyValue[V]{own, key}
	return key, nil
}
