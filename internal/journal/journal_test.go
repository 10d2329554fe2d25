package journal_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev/fault"
	"creto.dev/internal/journal"
)

// open opens a queue whose consumer has everything up to after.
func open(t testing.TB, cfg journal.Config, after uint64) (*journal.Journal, uint64) {
	t.Helper()
	j, err := journal.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	missing, err := j.Resume(after)
	if err != nil {
		t.Fatal(err)
	}
	return j, missing
}

func payload(n uint64) []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint64(nil, n), 1+int(n*7%40))
}

func add(t testing.TB, j *journal.Journal, n uint64) {
	t.Helper()
	sequence, err := j.Append(t.Context(), payload(n), time.Minute, true)
	if err != nil || sequence != n {
		t.Fatalf("Append = %d, %v; want %d", sequence, err, n)
	}
}

// take consumes up to limit payloads and checks that they are those behind after.
func take(t testing.TB, j *journal.Journal, after uint64, limit int) uint64 {
	t.Helper()
	frames, missing, err := j.Pending(limit)
	if err != nil || missing != 0 {
		t.Fatalf("Pending: %d missing, %v", missing, err)
	}
	for _, f := range frames {
		after++
		if f.Sequence != after || f.Payload != string(payload(after)) {
			t.Fatalf("payload %d has sequence number %d", after, f.Sequence)
		}
	}
	if err := j.Release(after); err != nil {
		t.Fatal(err)
	}
	return after
}

// Whatever is appended and taken, in whatever rhythm, over many laps, lives and
// spills, comes out in order and once.
func TestOrder(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			cfg := journal.Config{Dir: t.TempDir(), RingBytes: 4 << 10, Slots: 8 + random.IntN(40), Patience: time.Microsecond, Scrub: seed%2 == 0}
			j, _ := open(t, cfg, 0)
			var stop func()
			run := func() {
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				running.Go(func() { j.Run(ctx) })
				stop = func() { cancel(); running.Wait() }
			}
			run()
			var added, taken uint64
			for range 600 {
				switch n := random.IntN(10); {
				case n < 6:
					added++
					add(t, j, added)
				case n < 9:
					taken = take(t, j, taken, 1+random.IntN(9))
				default: // a life ends without a farewell
					stop()
					if err := j.Close(); err != nil {
						t.Fatal(err)
					}
					var missing uint64
					if j, missing = open(t, cfg, taken); missing != 0 {
						t.Fatalf("%d are missing after a restart", missing)
					}
					run()
				}
			}
			for taken < added {
				taken = take(t, j, taken, 100)
			}
			stop()
			if n := j.Waiting(); n != 0 {
				t.Errorf("%d wait at the end", n)
			}
			if left, _ := filepath.Glob(filepath.Join(cfg.Dir, "spool-*")); len(left) != 0 {
				t.Errorf("spool files are left: %v", left)
			}
		})
	}
}

// A consumer that has what the header does not know of: it died between its own
// commit and Release.
func TestConsumerAhead(t *testing.T) {
	cfg := journal.Config{Dir: t.TempDir(), RingBytes: 4 << 10}
	j, _ := open(t, cfg, 0)
	for n := range uint64(6) {
		add(t, j, n+1)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, missing := open(t, cfg, 4)
	if missing != 0 {
		t.Errorf("%d missing", missing)
	}
	if end := take(t, j, 4, 10); end != 6 {
		t.Errorf("taken up to %d, want 6", end)
	}
	add(t, j, 7)
}

// Damage anywhere costs what it hit, is counted, and keeps nothing else back.
func TestDamage(t *testing.T) {
	const frames = 40
	cfg := journal.Config{Dir: t.TempDir(), RingBytes: 16 << 10}
	j, _ := open(t, cfg, 0)
	durable := make([][]byte, 0, frames/2)
	for n := range uint64(frames) {
		if n < frames/2 {
			add(t, j, n+1)
			continue
		}
		durable = append(durable, payload(n+1))
	}
	if n, _, err := j.AppendDurable(t.Context(), durable, 0); n != len(durable) || err != nil {
		t.Fatal(n, err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Dir, "front.ring")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		data := bytes.Clone(good)
		at := random.IntN(len(data))
		data[at] ^= 1 << random.IntN(8)
		if random.IntN(4) == 0 { // a page that was never written
			clear(data[at&^4095 : at&^4095+4096])
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := journal.Open(cfg)
		if errors.Is(err, fault.DataLoss) && at < 4096 {
			continue // the header; refused, saying so
		}
		if err != nil {
			t.Fatalf("byte %d: %v", at, err)
		}
		missing, err := j.Resume(0)
		if err != nil {
			t.Fatal(err)
		}
		got, more, err := j.Pending(1000)
		if err != nil {
			t.Fatal(err)
		}
		last := uint64(0)
		for _, f := range got {
			if f.Sequence <= last || f.Payload != string(payload(f.Sequence)) {
				t.Fatalf("byte %d: frame %d is wrong or out of order", at, f.Sequence)
			}
			last = f.Sequence
		}
		// A header that is gone may count too few when the newest frames went with it.
		if uint64(len(got))+missing+more < frames && at >= 4096 {
			t.Errorf("byte %d: %d frames and %d missing, of %d", at, len(got), missing+more, frames)
		}
		if _, err := j.Append(t.Context(), []byte("next"), time.Minute, true); err != nil {
			t.Errorf("byte %d: Append = %v", at, err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A file that is cut under the map would be SIGBUS.
func TestBusError(t *testing.T) {
	cfg := journal.Config{Dir: t.TempDir(), RingBytes: 1 << 20}
	j, _ := open(t, cfg, 0)
	add(t, j, 1)
	if err := os.Truncate(filepath.Join(cfg.Dir, "front.ring"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(t.Context(), make([]byte, 1000), time.Minute, true); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Append = %v, want Unavailable", err)
	}
	if !j.Broken() {
		t.Error("it goes on with a ring that is gone")
	}
}

// Without room in ring and spool, whoever may wait does, and whoever may not is
// told at once.
func TestFull(t *testing.T) {
	j, _ := open(t, journal.Config{Dir: t.TempDir(), Slots: 4, SpoolBytes: 1200, Patience: time.Microsecond}, 0)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { j.Run(ctx) })
	defer running.Wait()
	defer stop()
	var added uint64
	for {
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := j.Append(short, payload(added+1), time.Minute, false)
		cancel()
		if errors.Is(err, fault.Unavailable) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		added++
	}
	if fill := j.Fill(); fill != 1 {
		t.Errorf("Fill = %v, want 1", fill)
	}
	for range 3 {
		j.CountLost(time.Unix(int64(j.Gap().Count), 0))
	}
	if g := j.Gap(); g.Count != 3 || !g.First.Equal(time.Unix(0, 0)) || !g.Last.Equal(time.Unix(2, 0)) {
		t.Errorf("Gap = %+v", g)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := j.Append(short, payload(added+1), time.Minute, true); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Append = %v, want Unavailable", err)
	}
	var taken uint64
	for taken < added {
		taken = take(t, j, taken, 100)
	}
	add(t, j, added+1)
	j.ForgetGap(j.Gap())
	if j.Gap().Count != 0 {
		t.Error("the gap stays")
	}
}

// After a power cut the header may be older than the frames, of which some are
// missing: the others behind them are found all the same.
func TestOldHeader(t *testing.T) {
	cfg := journal.Config{Dir: t.TempDir(), RingBytes: 1 << 20}
	j, _ := open(t, cfg, 0)
	for n := range uint64(3) {
		add(t, j, n+1)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Dir, "front.ring")
	ring, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ring[56] = 1                                              // the newest that it knows of
	clear(ring[88:104])                                       // the start of the kernel
	ring[bytes.Index(ring[4096:], payload(2))+4096] ^= 1 << 3 // the second frame's payload
	if err := os.WriteFile(path, ring, 0o600); err != nil {
		t.Fatal(err)
	}
	j, missing := open(t, cfg, 0)
	frames, _, err := j.Pending(10)
	if err != nil || missing != 1 || len(frames) != 2 || frames[1].Sequence != 3 {
		t.Errorf("%d missing and %d frames, %v; want 1, and frames 1 and 3", missing, len(frames), err)
	}
}

// A process that died behind a spill, between writing a frame and noting it: the
// frame is found, so that its number is never given twice.
func TestNumberOnce(t *testing.T) {
	cfg := journal.Config{Dir: t.TempDir(), RingBytes: 16 << 10, Slots: 4, Patience: time.Microsecond, Scrub: true}
	j, _ := open(t, cfg, 0)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { j.Run(ctx) })
	for n := range uint64(5) { // the fifth waits for the spill
		add(t, j, n+1)
	}
	stop()
	running.Wait()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Dir, "front.ring")
	ring, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ring[56] = 4 // the newest that it knows of
	if err := os.WriteFile(path, ring, 0o600); err != nil {
		t.Fatal(err)
	}
	j, _ = open(t, cfg, 0)
	add(t, j, 6)
}

// A ring that was being allocated when its maker died is made again, whole.
func TestHalfMade(t *testing.T) {
	cfg := journal.Config{Dir: t.TempDir(), RingBytes: 1 << 20}
	for _, size := range []int{0, 100, 4096, 8192} {
		if err := os.WriteFile(filepath.Join(cfg.Dir, "front.ring"), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		j, _ := open(t, cfg, 0)
		if _, err := j.Append(t.Context(), make([]byte, 400<<10), time.Minute, true); err != nil {
			t.Errorf("a file of %d zeros became a ring that has no room: %v", size, err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What is damaged while it waits is missed once, however often it is looked for.
func TestMissedOnce(t *testing.T) {
	cfg := journal.Config{Dir: t.TempDir(), RingBytes: 1 << 20}
	j, _ := open(t, cfg, 0)
	for n := range uint64(3) {
		add(t, j, n+1)
	}
	f, err := os.OpenFile(filepath.Join(cfg.Dir, "front.ring"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, 4096+24); err != nil { // the first payload
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint64{1, 0} {
		if frames, missing, err := j.Pending(10); err != nil || missing != want || len(frames) != 2 {
			t.Errorf("Pending = %d frames, %d missing, %v; want 2 and %d", len(frames), missing, err, want)
		}
	}
}

// A gap of which a record may have been made is the same gap in the next life.
func TestTellGap(t *testing.T) {
	cfg := journal.Config{Dir: t.TempDir(), RingBytes: 1 << 20}
	j, _ := open(t, cfg, 0)
	expect := func(count, before uint64) {
		t.Helper()
		if g := j.TellGap(); g.Count != count || g.Before != before {
			t.Errorf("TellGap = %d behind %d, want %d behind %d", g.Count, g.Before, count, before)
		}
	}
	expect(0, 0)
	for range 3 {
		j.CountLost(time.Unix(1, 0))
	}
	expect(3, 0)
	j.CountLost(time.Unix(2, 0))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, _ = open(t, cfg, 0)
	expect(3, 0)
	j.ForgetGap(j.TellGap())
	expect(1, 3)
	j.ForgetGap(j.TellGap())
	expect(0, 4)
}

func BenchmarkAppend(b *testing.B) {
	j, _ := open(b, journal.Config{Dir: b.TempDir()}, 0)
	data := make([]byte, 400)
	b.ReportAllocs()
	for b.Loop() {
		sequence, err := j.Append(b.Context(), data, time.Minute, true)
		if err != nil {
			b.Fatal(err)
		}
		if sequence%1000 == 0 {
			if err := j.Release(sequence); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// What recovery would not take for a frame is not accepted.
func TestLargePayload(t *testing.T) {
	cfg := journal.Config{Dir: t.TempDir(), RingBytes: 8 << 20}
	j, _ := open(t, cfg, 0)
	for _, size := range []int{1 << 20, 1<<20 + 1} {
		sequence, err := j.Append(t.Context(), make([]byte, size), time.Minute, true)
		if err != nil {
			if !errors.Is(err, fault.InvalidArgument) {
				t.Errorf("Append of %d bytes = %v", size, err)
			}
			continue
		}
		frames, missing, err := j.Pending(1)
		if err != nil || missing != 0 || len(frames) != 1 || len(frames[0].Payload) != size {
			t.Fatalf("Pending of %d bytes: %d frames, %d missing, %v", size, len(frames), missing, err)
		}
		if err := j.Release(sequence); err != nil {
			t.Fatal(err)
		}
	}
}

// A bit that flipped in the header neither makes payloads disappear nor has others
// counted that never were.
func TestDamagedHeader(t *testing.T) {
	for _, at := range []int64{40, 56} { // what the consumer has; the newest
		for bit := range 64 {
			cfg := journal.Config{Dir: t.TempDir(), RingBytes: 4 << 10, Scrub: true}
			j, _ := open(t, cfg, 0)
			for n := range uint64(5) {
				add(t, j, n+1)
			}
			take(t, j, 0, 2)
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(cfg.Dir, "front.ring")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			data[at+int64(bit/8)] ^= 1 << (bit % 8)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if j, err = journal.Open(cfg); err != nil {
				t.Fatal(err)
			}
			missing, err := j.Resume(j.Acknowledged())
			if err != nil || missing > 2 || j.Waiting() != 3 || j.Newest() != 5 {
				t.Fatalf("bit %d at %d: %d missing, %d wait, newest %d, %v; want 3 and 5", bit, at, missing, j.Waiting(), j.Newest(), err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What is waited for is written into the ring's file, the rest into its map: the order
// is one, and so is what a life after kill -9 finds.
func TestDurable(t *testing.T) {
	dir := t.TempDir()
	cfg := journal.Config{Dir: dir, Slots: 60, RingBytes: 1 << 13, SpoolBytes: -1, Scrub: true}
	j, _ := open(t, cfg, 0)
	random := rand.New(rand.NewPCG(1, 2))
	next, taken := uint64(1), uint64(0)
	check := func(frames []journal.Frame) {
		t.Helper()
		for _, f := range frames {
			if taken++; f.Sequence != taken || f.Payload != string(payload(taken)) {
				t.Fatalf("frame %d is %d: %q", taken, f.Sequence, f.Payload)
			}
		}
	}
	for round := range 400 {
		if random.IntN(2) == 0 {
			if _, err := j.Append(t.Context(), payload(next), 0, false); err == nil {
				next++
			}
		} else {
			batch := make([][]byte, 1+random.IntN(12))
			for i := range batch {
				batch[i] = payload(next + uint64(i))
			}
			n, last, err := j.AppendDurable(t.Context(), batch, 0)
			if (err == nil) != (n == len(batch)) || n > 0 && last != next+uint64(n)-1 {
				t.Fatalf("AppendDurable of %d from %d = %d, %d, %v", len(batch), next, n, last, err)
			}
			if next += uint64(n); n > 0 && j.Sync(last) != nil {
				t.Fatal("Sync failed")
			}
		}
		if round%40 == 39 { // another life, without Close: all that was appended is there
			var missing uint64
			if j, missing = open(t, cfg, taken); missing > 0 {
				t.Fatalf("%d payloads are missing behind %d", missing, taken)
			}
		}
		if random.IntN(3) > 0 {
			continue
		}
		frames, missing, err := j.Pending(5)
		if err != nil || missing > 0 {
			t.Fatal(missing, err)
		}
		check(frames)
		// What follows is read before the first are released, as often as one likes.
		for range 2 {
			if frames, _, err = j.Following(taken, 7); err != nil {
				t.Fatal(err)
			}
			for i, f := range frames {
				if f.Sequence != taken+uint64(i)+1 {
					t.Fatalf("frame %d follows %d", f.Sequence, taken)
				}
			}
		}
		check(frames)
		if err := j.Release(taken); err != nil {
			t.Fatal(err)
		}
	}
	if next < 1000 {
		t.Errorf("only %d payloads had room", next)
	}
}

// A payload that never fits is refused, and those before it are there.
func TestDurableTooLarge(t *testing.T) {
	j, _ := open(t, journal.Config{Dir: t.TempDir(), RingBytes: 1 << 16}, 0)
	n, last, err := j.AppendDurable(t.Context(), [][]byte{payload(1), make([]byte, 1<<20), payload(2)}, 0)
	if n != 1 || last != 1 || !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("AppendDurable = %d, %d, %v", n, last, err)
	}
}

// While the consumer works nothing is moved to the spool, however full the ring is.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		j, _ := open(t, journal.Config{Dir: dir, Slots: 10, RingBytes: 1 << 16, Patience: time.Second}, 0)
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { j.Run(ctx) })
		defer running.Wait()
		defer stop()
		appended := func() {
			t.Helper()
			for {
				if _, err := j.Append(t.Context(), []byte("x"), 0, true); err != nil {
					return // it is full
				}
			}
		}
		appended()
		for n := range uint64(5) {
			time.Sleep(700 * time.Millisecond)
			if err := j.Release(n + 1); err != nil {
				t.Fatal(err)
			}
			appended()
		}
		if names, _ := filepath.Glob(filepath.Join(dir, "spool*")); len(names) > 0 {
			t.Errorf("the spool has %q although the consumer works", names)
		}
		time.Sleep(3 * time.Second)
		appended()
		time.Sleep(3 * time.Second)
		if names, _ := filepath.Glob(filepath.Join(dir, "spool*")); len(names) == 0 {
			t.Error("the consumer is stuck, and the spool has nothing")
		}
	})
}
