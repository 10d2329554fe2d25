package journal

import (
	"context"
	"time"

	"creto.dev/fault"
)

// Append copies payload and returns its sequence number. It waits for room until
// ctx ends, but no longer than patience; with wait false only as long as there
// may soon be some.
//
// Errors: Unavailable (Degraded) without room, or once the disk failed;
// InvalidArgument (Permanent) for a payload that never fits.
func (j *Journal) Append(ctx context.Context, payload []byte, patience time.Duration, wait bool) (uint64, error) {
	var one [1][]byte
	one[0] = payload
	_, sequence, err := j.append(ctx, one[:], patience, wait, false)
	return sequence, err
}

// AppendDurable is Append for payloads of which the caller Syncs the last: it returns
// how many were appended, in order, and the sequence number of the last of them.
//
// They are written into the file and not into its map. Of a page that was written
// through the map a sync must first tell every core that runs the process, which
// takes longer than all else.
//
// Errors: those of Append; what is before the payload that it is about was appended.
func (j *Journal) AppendDurable(ctx context.Context, payloads [][]byte, patience time.Duration) (n int, last uint64, err error) {
	return j.append(ctx, payloads, patience, true, true)
}

func (j *Journal) append(ctx context.Context, payloads [][]byte, patience time.Duration, wait, durable bool) (n int, last uint64, err error) {
	const op fault.Op = "journal.Append"
	var late <-chan time.Time
	for {
		j.mu.Lock()
		if j.broken.Load() {
			j.mu.Unlock()
			return n, last, errBroken(op)
		}
		var k int
		if durable {
			k, err = j.putFile(payloads[n:])
		} else {
			k, err = j.putMap(payloads[0])
		}
		n += k
		if k > 0 {
			last = j.next - 1
		}
		freed, full := j.freed, j.full
		j.mu.Unlock()
		if err != nil {
			return n, last, err
		}
		if n == len(payloads) {
			return n, last, nil
		}
		select {
		case j.pressed <- struct{}{}:
		default:
		}
		if full && !wait {
			return n, last, fault.New(op, fault.Unavailable, "the log is full: its database does not keep up, and the spool has no room")
		}
		if late == nil || k > 0 {
			timer := time.NewTimer(patience)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-freed:
			continue
		case <-ctx.Done():
		case <-late:
		}
		return n, last, fault.New(op, fault.Unavailable, "the log is full: its database does not keep up")
	}
}

// fits refuses a payload that never has room.
func (j *Journal) fits(payload []byte) error {
	if frameBytes(len(payload)) > int64(len(j.ring.data))/2 || len(payload) > maxFrame {
		return fault.New("journal.Append", fault.InvalidArgument, "%d bytes do not fit into a ring of %d", len(payload), len(j.ring.data))
	}
	return nil
}

// putMap writes a frame into the map if there is room, and returns how many it wrote:
// 1 or 0. The caller holds mu.
func (j *Journal) putMap(payload []byte) (int, error) {
	if err := j.fits(payload); err != nil {
		return 0, err
	}
	at, ok := j.room(frameBytes(len(payload)))
	if !ok {
		return 0, nil
	}
	err := guard(func() error {
		j.skipTo(at)
		j.ring.write(at, j.next, payload)
		j.ring.note(atNewest, j.next)
		return nil
	})
	if err != nil {
		j.broken.Store(true)
		return 0, err
	}
	j.placed(at, len(payload))
	return 1, nil
}

// skipTo says where the next frame is if it is not where the last one ends.
func (j *Journal) skipTo(at int64) {
	if at != j.end && int64(len(j.ring.data))-j.end >= frameHeader {
		j.ring.skip(j.end)
	}
}

// placed notes the frame that was written.
func (j *Journal) placed(at int64, length int) {
	j.waiting.push(slot{sequence: j.next, at: at, length: length})
	j.next++
	j.end = at + frameBytes(length)
}

// putFile writes frames into the file as long as there is room, and returns how many.
// The caller holds mu.
func (j *Journal) putFile(payloads [][]byte) (n int, err error) {
	for n < len(payloads) {
		k, err := j.putRun(payloads[n:])
		if n += k; k == 0 || err != nil {
			return n, err
		}
	}
	return n, nil
}

// maxRun bounds what is written with one system call.
const maxRun = 128 << 10

// putRun writes frames that lie one behind the other.
func (j *Journal) putRun(payloads [][]byte) (n int, err error) {
	begin, end, next, waited := j.end, j.end, j.next, j.waiting.n
	j.run = j.run[:0]
	for _, payload := range payloads {
		if err = j.fits(payload); err != nil || len(j.run) > maxRun {
			break
		}
		at, ok := j.room(frameBytes(len(payload)))
		if !ok || n > 0 && at != j.end {
			break
		}
		if n == 0 {
			if err := guard(func() error { j.skipTo(at); return nil }); err != nil {
				j.broken.Store(true)
				return 0, err
			}
			begin = at
		}
		frame := len(j.run)
		j.run = append(j.run, make([]byte, frameBytes(len(payload)))...)
		fillFrame(j.run[frame:frame+frameHeader+len(payload)], j.ring.mark, j.next, payload)
		j.placed(at, len(payload))
		n++
	}
	if n == 0 {
		return 0, err
	}
	if failed := j.writeFile(j.run, begin); failed != nil {
		j.waiting.n, j.next, j.end = waited, next, end
		return 0, failed
	}
	if failed := guard(func() error { j.ring.note(atNewest, j.next-1); return nil }); failed != nil {
		j.broken.Store(true)
		return n, failed
	}
	return n, err
}

// writeFile writes data at a place of the ring.
func (j *Journal) writeFile(data []byte, at int64) error {
	if _, err := j.file.WriteAt(data, headerBytes+at); err != nil {
		j.broken.Store(true)
		return fault.WrapAs("journal.writeFile", fault.Unavailable, err, "the log's disk failed; repair it and restart creto")
	}
	return nil
}

// room returns where a frame of that size can go.
func (j *Journal) room(need int64) (at int64, ok bool) {
	size := int64(len(j.ring.data))
	if j.waiting.len() >= j.cfg.Slots {
		return 0, false
	}
	if j.waiting.len() == 0 {
		if j.end+need > size {
			return 0, true
		}
		return j.end, true
	}
	begin := j.waiting.first().at
	switch {
	case j.end > begin && j.end+need <= size:
		return j.end, true
	case j.end > begin && need <= begin:
		return 0, true
	case j.end <= begin && j.end+need <= begin:
		return j.end, true
	}
	return 0, false
}
