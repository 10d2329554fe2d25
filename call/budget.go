package call

import "sync"

const (
	// retryShare is how many calls earn one retry: at most 10 % extra calls
	// (R-PAT-5).
	retryShare = 10
	// maxSaved is how many retries can be saved up, for a quiet dependency that
	// fails for a moment.
	maxSaved = 10
)

// Budget bounds the retries of all calls to one dependency to a tenth of the
// calls, with ten to begin with, so that a failing dependency is not buried
// under retries. The zero Budget is ready; a nil one has no bound. Safe for
// concurrent use.
type Budget struct {
	mu    sync.Mutex // guards spent
	spent int        // in tenths of a retry, 0 to retryShare*maxSaved
}

// earn counts one call.
func (b *Budget) earn() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spent > 0 {
		b.spent--
	}
}

// spend takes one retry and reports whether there was one.
func (b *Budget) spend() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spent+retryShare > retryShare*maxSaved {
		return false
	}
	b.spent += retryShare
	return true
}
