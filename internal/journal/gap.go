package journal

import "time"

// Gap is what could not be kept.
type Gap struct {
	Count       uint64
	First, Last time.Time
	// Before is how many were counted and told of before: it tells one gap from
	// the next.
	Before uint64
}

// CountLost notes that something was not appended for want of room. The count
// survives the process.
func (j *Journal) CountLost(at time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ring.head == nil {
		return
	}
	_ = guard(func() error { j.ring.countLost(at.UnixNano()); return nil })
}

// Gap returns what CountLost counted and no record tells of.
func (j *Journal) Gap() Gap {
	return j.gap(func() uint64 { return j.ring.get(atGapCount) })
}

// TellGap is Gap for who makes a record of it: until ForgetGap, in this life and
// in the next, it returns the same count for the same Before, so that a record
// can be told from its repetition.
func (j *Journal) TellGap() Gap {
	return j.gap(func() uint64 {
		if j.ring.get(atGapTelling) <= j.ring.get(atGapTold) {
			j.ring.set(atGapTelling, j.ring.get(atGapCount))
		}
		return j.ring.get(atGapTelling)
	})
}

func (j *Journal) gap(until func() uint64) (g Gap) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ring.head == nil {
		return Gap{}
	}
	_ = guard(func() error {
		g.Before = j.ring.get(atGapTold)
		g.Count = until() - g.Before
		g.First, g.Last = time.Unix(0, int64(j.ring.get(atGapFirst))).UTC(), time.Unix(0, int64(j.ring.get(atGapLast))).UTC()
		return nil
	})
	return g
}

// ForgetGap says that a record tells of g. It is one store, so that a process
// that is killed has done it or not.
func (j *Journal) ForgetGap(g Gap) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ring.head == nil {
		return
	}
	_ = guard(func() error { j.ring.set(atGapTold, g.Before+g.Count); return nil })
}
