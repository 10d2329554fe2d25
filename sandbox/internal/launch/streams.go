package launch

import (
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"creto.dev/sandbox"
)

// streams are the files that a sandbox gets as stdio, and the goroutines that
// copy where the caller gave something else.
type streams struct {
	stdin, stdout, stderr *os.File

	copyFiles bool
	ours      []*os.File // the sandbox's ends, closed once it has them
	feed      func()     // copies stdin; not waited for
	feedTo    *os.File
	readers   []*os.File
	copies    []func()
	wait      sync.WaitGroup
}

// openStreams prepares spec's stdio. copyFiles asks for pipes in place of
// regular files, for an engine that does not share their offset.
func openStreams(spec sandbox.Spec, copyFiles bool) (*streams, error) {
	s := &streams{copyFiles: copyFiles}
	if err := s.open(spec); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *streams) open(spec sandbox.Spec) error {
	file, _ := spec.Stdin.(*os.File)
	switch in := spec.Stdin; {
	case file != nil && s.passable(file):
		s.stdin = file
	case in == nil:
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		s.stdin, s.ours = null, append(s.ours, null)
	default:
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		s.stdin, s.ours, s.feedTo = r, append(s.ours, r), w
		s.feed = func() {
			_, _ = io.Copy(w, in) // a command that reads no more is no failure
			w.Close()
		}
	}
	var err error
	if s.stdout, err = s.output(spec.Stdout); err != nil {
		return err
	}
	if s.stderr, err = s.output(spec.Stderr); err != nil {
		return err
	}
	return nil
}

func (s *streams) output(w io.Writer) (*os.File, error) {
	if file, ok := w.(*os.File); ok && s.passable(file) {
		return file, nil
	}
	if w == nil {
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err == nil {
			s.ours = append(s.ours, null)
		}
		return null, err
	}
	r, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.ours, s.readers = append(s.ours, out), append(s.readers, r)
	s.copies = append(s.copies, func() {
		if _, err := io.Copy(w, r); err != nil {
			r.Close() // the command learns that nobody reads
		}
	})
	return out, nil
}

func (s *streams) passable(file *os.File) bool {
	info, err := file.Stat()
	return !s.copyFiles || err != nil || !info.Mode().IsRegular()
}

// started closes the sandbox's ends and begins to copy.
func (s *streams) started() {
	for _, file := range s.ours {
		file.Close()
	}
	s.ours = nil
	if s.feed != nil {
		go s.feed()
	}
	for _, run := range s.copies {
		s.wait.Go(run)
	}
}

// drain waits until everything written has been copied. Every process has
// ended: what is left is in the pipes.
func (s *streams) drain() {
	for _, r := range s.readers {
		_ = r.SetReadDeadline(now().Add(drainTimeout))
	}
	s.wait.Wait()
}

func (s *streams) close() {
	for _, file := range append(s.ours, s.readers...) {
		file.Close()
	}
	if s.feedTo != nil {
		s.feedTo.Close() // ends feed's next write
	}
}

func isTerminal(r io.Reader) bool {
	file, ok := r.(*os.File)
	if !ok {
		return false
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return false
	}
	terminal := false
	err = raw.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		terminal = err == nil
	})
	return err == nil && terminal
}
