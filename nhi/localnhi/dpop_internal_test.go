package localnhi

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestOneKeyDoesNotFillTheMemory: who proves too often is refused, others are
// not, and it passes.
func TestOneKeyDoesNotFillTheMemory(t *testing.T) {
	var d dpop
	now := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	n := 0
	fill := func(key string) (accepted int) {
		for ; accepted < maxProofs+1; accepted++ {
			n++
			if why := d.use(key, strconv.Itoa(n), now); why != "" {
				if !strings.Contains(why, "too many") {
					t.Errorf("the proof is refused since %s", why)
				}
				break
			}
		}
		return accepted
	}
	if got := fill("greedy"); got != maxProofsOfKey {
		t.Errorf("%d proofs of one key were accepted, want %d", got, maxProofsOfKey)
	}
	if why := d.use("modest", "1", now); why != "" {
		t.Errorf("another key's proof is refused: %s", why)
	}
	all := maxProofsOfKey + 1
	for i := 0; all < maxProofs; i++ {
		all += fill("key" + strconv.Itoa(i))
	}
	if got := fill("one more"); got != 0 || all != maxProofs {
		t.Errorf("of %d proofs that fit, %d more were accepted", all, got)
	}
	now = now.Add(proofWindow + proofSkew)
	if why := d.use("modest", "1", now); why != "it was used before" {
		t.Errorf("a proof of the while before is taken again: %q", why)
	}
	if why := d.use("greedy", "later", now); why != "" {
		t.Errorf("later, the first key's proof is refused: %s", why)
	}
	now = now.Add(time.Hour)
	if why := d.use("modest", "1", now); why != "" || len(d.before.proofs) > 0 {
		t.Errorf("after an hour %d proofs are remembered: %q", len(d.before.proofs), why)
	}
}
