package journal_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"creto.dev/internal/journal"
)

// sector is what a disk writes whole.
const sector = 512

// disk makes images of a queue's directory as a crash leaves them: of the ring any
// version of each sector since the last sync, and spool files that are whole, cut
// or full of holes while they are written, or back after they were removed.
type disk struct {
	dir      string
	random   *rand.Rand
	versions [][]byte          // of the ring, since the last sync
	spool    map[string][]byte // files that a crash may bring back
}

func (d *disk) ring(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(d.dir, "front.ring"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// see remembers what the files are now; synced says that the ring is on disk.
func (d *disk) see(t *testing.T, synced bool) {
	t.Helper()
	if synced {
		d.versions = nil
	}
	d.versions = append(d.versions, d.ring(t))
	names, err := filepath.Glob(filepath.Join(d.dir, "spool-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if d.spool[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
}

// crash writes an image into another directory, in which the queue goes on.
func (d *disk) crash(t *testing.T, power, appended bool) string {
	t.Helper()
	to := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ring := bytes.Clone(d.versions[len(d.versions)-1])
	if power {
		for at := 0; at < len(ring); at += sector {
			copy(ring[at:at+sector], d.versions[d.random.IntN(len(d.versions))][at:])
		}
		clear(ring[88:104]) // as after another start of the kernel
	} else if newest := binary.LittleEndian.Uint64(ring[56:]); appended && newest > 0 && d.random.IntN(2) == 0 {
		// The process died before it noted what it had written.
		binary.LittleEndian.PutUint64(ring[56:], newest-1)
	}
	write("front.ring", ring)
	for name, data := range d.spool {
		_, err := os.Stat(filepath.Join(d.dir, name))
		if err != nil && (!power || d.random.IntN(2) == 0) {
			continue // removed
		}
		write(name, data)
	}
	d.dir, d.versions, d.spool = to, nil, make(map[string][]byte)
	return to
}

// forged is a payload in which lies a frame that nobody appended, as a client may
// log one.
func forged(n uint64) []byte {
	frame := make([]byte, 24+8)
	binary.LittleEndian.PutUint32(frame, 8)
	binary.LittleEndian.PutUint64(frame[8:], n+1_000_000)
	copy(frame[16:], "whatever"+"forgery!")
	binary.LittleEndian.PutUint32(frame[4:], crc32.Checksum(frame[8:], crc32.MakeTable(crc32.Castagnoli)))
	return bytes.Repeat(frame, 40)
}

// Crashes of the process and of the machine, one after the other, at any moment,
// with torn sectors: what was synced is there, in order, once, as it was; what is
// missing is counted; nothing else appears.
func TestTorn(t *testing.T) {
	seeds := uint64(30)
	if os.Getenv("CRETO_TORTURE") != "" {
		seeds = 2000
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { torn(t, seed) })
	}
}

func torn(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 9))
	cfg := journal.Config{Dir: t.TempDir(), RingBytes: 16 << 10, Slots: 16 + random.IntN(40), Patience: time.Microsecond, Scrub: seed%2 == 0}
	d := &disk{dir: cfg.Dir, random: random, spool: make(map[string][]byte)}
	j, _ := open(t, cfg, 0)
	d.see(t, true)
	want := map[uint64][]byte{} // by sequence number
	var taken, synced, newest uint64
	run := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { j.Run(ctx) })
		return func() { cancel(); running.Wait() }
	}
	stop := run()
	for range 12 {
		appended := false
		for range random.IntN(60) {
			appended = false
			switch n := random.IntN(12); {
			case n < 7:
				data := payload(random.Uint64N(1 << 40))
				if random.IntN(4) == 0 {
					data = forged(newest)
				}
				sequence, err := j.Append(t.Context(), data, time.Minute, true)
				if err != nil || sequence != newest+1 {
					t.Fatalf("Append = %d, %v; want %d", sequence, err, newest+1)
				}
				newest = sequence
				want[newest], appended = data, true
				d.see(t, false)
			case n < 9:
				if err := j.Sync(newest); err != nil {
					t.Fatal(err)
				}
				synced = newest
				d.see(t, true)
			default:
				frames, _, err := j.Pending(1 + random.IntN(12))
				if err != nil {
					t.Fatal(err)
				}
				if len(frames) == 0 {
					continue
				}
				taken = frames[len(frames)-1].Sequence // committed; what was taken is durable
				if random.IntN(4) > 0 {
					if err := j.Release(taken); err != nil {
						t.Fatal(err)
					}
				}
				d.see(t, false)
			}
		}
		stop()
		power := random.IntN(2) == 0
		d.see(t, false)
		cfg.Dir = d.crash(t, power, appended)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		var missing uint64
		j, missing = open(t, cfg, taken)
		d.see(t, true) // Resume syncs
		waiting := j.Waiting()
		frames, more, err := j.Pending(1 << 20)
		for err == nil && len(frames) < waiting { // the spool first, file by file
			if err = j.Release(frames[len(frames)-1].Sequence); err != nil {
				break
			}
			var next []journal.Frame
			var n uint64
			if next, n, err = j.Pending(1 << 20); len(next) == 0 {
				break
			}
			frames, more = append(frames, next...), more+n
		}
		if err != nil {
			t.Fatal(err)
		}
		last, found := taken, map[uint64]bool{}
		for _, f := range frames {
			if f.Sequence <= last || f.Payload != string(want[f.Sequence]) {
				t.Fatalf("frame %d after %d (power %t) is none that was appended, or not in its place", f.Sequence, last, power)
			}
			last, found[f.Sequence] = f.Sequence, true
		}
		for n := taken + 1; n <= newest; n++ {
			if !found[n] {
				if _, ok := want[n]; !ok || power && n > synced {
					delete(want, n) // in this power cut or an earlier one
					continue
				}
				t.Fatalf("frame %d of %d (taken %d, synced %d, power %t) is lost", n, newest, taken, synced, power)
			}
		}
		if uint64(len(frames))+missing+more > newest-taken || last-taken > uint64(len(frames))+missing+more {
			t.Fatalf("%d frames up to %d, %d missing, of %d behind %d (power %t)", len(frames), last, missing+more, newest-taken, taken, power)
		}
		if len(frames) > 0 {
			taken = last
			if err := j.Release(taken); err != nil {
				t.Fatal(err)
			}
		}
		data := payload(seed)
		sequence, err := j.Append(t.Context(), data, time.Minute, true)
		if err != nil || sequence <= max(last, taken) {
			t.Fatalf("Append = %d, %v after frame %d", sequence, err, last)
		}
		for n := range want {
			if n >= sequence {
				delete(want, n)
			}
		}
		newest, synced = sequence, min(synced, sequence-1)
		want[newest] = data
		d.see(t, false)
		stop = run()
	}
	stop()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}
