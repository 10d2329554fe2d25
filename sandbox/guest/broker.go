package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A directory whose changes are kept is the host's own, and so are the Unix
// sockets in it, which no network namespace and no read-only mount keeps a
// program from: a database, an agent with keys. (Through an overlay they
// cannot be reached.) So in a run with such directories each connect(2) of the
// command is handed to the first process, by seccomp_unotify(2), which
// connects the socket itself: to what lives in the sandbox's own file systems,
// and to nothing else. It works on copies, of the address and of the socket,
// so that nothing it decided on can change under it.

// brokerFilter is stacked on filter for the command of such a run. Datagram
// sockets, which can send anywhere without connect, are refused in the Unix
// family.
func brokerFilter() []bpf.Instruction {
	program := append(prologue(), check(unix.SYS_CONNECT, bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF})...)
	for _, number := range []uintptr{unix.SYS_SOCKET, unix.SYS_SOCKETPAIR} {
		program = append(program, check(number,
			argument(0),
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_UNIX, SkipFalse: 4},
			argument(1),
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf}, // without SOCK_CLOEXEC and SOCK_NONBLOCK
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOCK_DGRAM, SkipFalse: 1},
			errno(unix.EPERM),
			allow)...)
	}
	return append(program, allow)
}

// broker answers for one listener.
type broker struct {
	listener int
	mounts   map[uint64]bool // ids of mounts whose sockets may be reached
}

// The parts of struct seccomp_notif and seccomp_notif_resp, seccomp_unotify(2).
type (
	notification struct {
		ID          uint64
		PID, Flags  uint32
		Number      int32
		Arch        uint32
		Instruction uint64
		Args        [6]uint64
	}
	answer struct {
		ID    uint64
		Value int64
		Error int32
		Flags uint32
	}
)

// _IOWR('!', 0, struct seccomp_notif) and its siblings.
const (
	notifReceive = 0xc0502100
	notifSend    = 0xc0182101
)

// newBroker notes which mounts are the sandbox's own.
func newBroker(listener int, tree Tree) (*broker, error) {
	b := &broker{listener: listener, mounts: map[uint64]bool{}}
	own := []string{"/tmp", "/dev/shm", GatewayPath}
	if tree.Overlay != "" {
		own = append(own, tree.Overlay)
	}
	for _, path := range own {
		var info unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &info); err != nil {
			return nil, &os.PathError{Op: "statx", Path: path, Err: err}
		}
		b.mounts[info.Mnt_id] = true
	}
	return b, nil
}

// serve answers until the listener ends with the last process under it.
func (b *broker) serve() {
	for {
		var n notification
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(b.listener), notifReceive, uintptr(unsafe.Pointer(&n))); e != 0 {
			if e == unix.EINTR || e == unix.ENOENT { // a signal, or the caller's death
				continue
			}
			return
		}
		// Each apart: a connect may block until a backlog has room.
		go func() {
			a := answer{ID: n.ID}
			if err := b.connect(n); err != nil {
				number, ok := errors.AsType[unix.Errno](err)
				if !ok {
					number = unix.EACCES
				}
				a.Error = -int32(number)
			}
			// Fails if the caller is gone meanwhile.
			_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(b.listener), notifSend, uintptr(unsafe.Pointer(&a)))
		}()
	}
}

// connect does the caller's connect(fd, address, length).
func (b *broker) connect(n notification) error {
	const most = unix.SizeofSockaddrAny
	if n.Args[2] > most {
		return unix.EINVAL
	}
	address := make([]byte, n.Args[2])
	if err := b.read(n.PID, n.Args[1], address); err != nil {
		return err
	}
	socket, err := b.socket(n.PID, int(int32(n.Args[0])))
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	if path, ok := socketPath(address); ok {
		at, err := b.find(n.PID, path)
		if err != nil {
			return err
		}
		defer unix.Close(at)
		return unix.Connect(socket, &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(at)})
	}
	var first unsafe.Pointer
	if len(address) > 0 {
		first = unsafe.Pointer(&address[0])
	}
	_, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(socket), uintptr(first), uintptr(len(address)))
	runtime.KeepAlive(address)
	if e != 0 {
		return e
	}
	return nil
}

func (b *broker) read(pid uint32, from uint64, to []byte) error {
	if len(to) == 0 {
		return nil
	}
	local := []unix.Iovec{{Base: &to[0], Len: uint64(len(to))}}
	remote := []unix.RemoteIovec{{Base: uintptr(from), Len: len(to)}}
	n, err := unix.ProcessVMReadv(int(pid), local, remote, 0)
	if err == nil && n != len(to) {
		err = unix.EFAULT
	}
	return err
}

// socket returns a copy of the descriptor fd of the process that the thread is
// of.
func (b *broker) socket(thread uint32, fd int) (int, error) {
	process, err := processOf(thread)
	if err != nil {
		return -1, err
	}
	handle, err := unix.PidfdOpen(process, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(handle)
	return unix.PidfdGetfd(handle, fd, 0)
}

func processOf(thread uint32) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return 0, unix.ESRCH
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "Tgid:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, unix.ESRCH
}

// socketPath returns the path in an address of the Unix family. An abstract
// name is none: it belongs to the sandbox's own network.
func socketPath(address []byte) (string, bool) {
	const start = 2 // sizeof(sa_family_t)
	if len(address) <= start || *(*uint16)(unsafe.Pointer(&address[0])) != unix.AF_UNIX || address[start] == 0 {
		return "", false
	}
	path, _, _ := strings.Cut(string(address[start:]), "\x00")
	return path, true
}

// find opens the socket that path means to pid, if it is the sandbox's own.
func (b *broker) find(pid uint32, path string) (int, error) {
	dir := unix.AT_FDCWD
	if !filepath.IsAbs(path) {
		// Followed by the kernel to the very directory, wherever it moved.
		cwd, err := unix.Open(fmt.Sprintf("/proc/%d/cwd", pid), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		defer unix.Close(cwd)
		dir = cwd
	}
	// /proc/self would be this process, not the caller.
	at, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return -1, err
	}
	var info unix.Statx_t
	err = unix.Statx(at, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &info)
	if err == nil && !b.mounts[info.Mnt_id] {
		err = unix.EACCES
	}
	if err != nil {
		unix.Close(at)
		return -1, err
	}
	return at, nil
}
