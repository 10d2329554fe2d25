package guest_test

import (
	"encoding/binary"
	"math"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"creto.dev/sandbox/guest"
)

const (
	allow  = unix.SECCOMP_RET_ALLOW
	kill   = unix.SECCOMP_RET_KILL_PROCESS
	notify = unix.SECCOMP_RET_USER_NOTIF
	eperm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	family = unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)
)

// decide runs a filter on one call. The machine of package bpf reads big-endian
// words, the kernel the host's; the words are the same.
func decide(t *testing.T, program []bpf.Instruction, arch, number uint32, args ...uint64) uint32 {
	t.Helper()
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64) // struct seccomp_data, seccomp(2)
	binary.BigEndian.PutUint32(data, number)
	binary.BigEndian.PutUint32(data[4:], arch)
	for i, arg := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(arg))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(arg>>32))
	}
	result, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(result)
}

func TestFilter(t *testing.T) {
	const high = 0xdead << 32 // which the kernel does not read
	for _, c := range []struct {
		name   string
		number uint32
		args   []uint64
		want   uint32
	}{
		{"read", unix.SYS_READ, nil, allow},
		{"execve", unix.SYS_EXECVE, nil, allow},
		{"ptrace", unix.SYS_PTRACE, nil, allow},
		{"mount", unix.SYS_MOUNT, nil, eperm},
		{"umount", unix.SYS_UMOUNT2, nil, eperm},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR, nil, eperm},
		{"unshare", unix.SYS_UNSHARE, nil, eperm},
		{"setns", unix.SYS_SETNS, nil, eperm},
		{"bpf", unix.SYS_BPF, nil, eperm},
		{"keyctl", unix.SYS_KEYCTL, nil, eperm},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, nil, eperm},
		{"clone3", unix.SYS_CLONE3, nil, enosys},
		{"io_uring", unix.SYS_IO_URING_SETUP, nil, enosys},
		{"fork", unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}, allow},
		{"thread", unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD}, allow},
		{"clone user", unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD) | unix.CLONE_NEWUSER}, eperm},
		{"clone mount", unix.SYS_CLONE, []uint64{unix.CLONE_NEWNS}, eperm},
		{"clone time", unix.SYS_CLONE, []uint64{unix.CLONE_NEWTIME}, eperm},
		{"terminal size", unix.SYS_IOCTL, []uint64{0, unix.TIOCGWINSZ}, allow},
		{"type into the terminal", unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}, eperm},
		{"type into the terminal, high bits", unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI | high}, eperm},
		{"paste into the console", unix.SYS_IOCTL, []uint64{0, 0x541c}, eperm},
		{"unix socket", unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_DGRAM}, allow},
		{"tcp", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM}, allow},
		{"tcp6", unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_STREAM}, allow},
		{"routes", unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, allow},
		{"netfilter", unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, family},
		{"packet", unix.SYS_SOCKET, []uint64{unix.AF_PACKET, unix.SOCK_RAW}, family},
		{"vsock", unix.SYS_SOCKET, []uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, family},
		{"vsock, high bits", unix.SYS_SOCKET, []uint64{unix.AF_VSOCK | high, unix.SOCK_STREAM}, family},
		{"crypto", unix.SYS_SOCKET, []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}, family},
		{"personality read", unix.SYS_PERSONALITY, []uint64{math.MaxUint32}, allow},
		{"personality", unix.SYS_PERSONALITY, []uint64{0x0400000}, eperm},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := decide(t, guest.Filter(), guest.AuditArch, c.number, c.args...); got != c.want {
				t.Errorf("filter(%d, %#x) = %#x, want %#x", c.number, c.args, got, c.want)
			}
		})
	}
	if got := decide(t, guest.Filter(), guest.AuditArch, 0x40000000|unix.SYS_READ); guest.AuditArch == unix.AUDIT_ARCH_X86_64 && got != kill {
		t.Errorf("an x32 call gives %#x, want kill", got)
	}
	for _, program := range [][]bpf.Instruction{guest.Filter(), guest.BrokerFilter()} {
		if got := decide(t, program, unix.AUDIT_ARCH_I386, unix.SYS_READ); got != kill {
			t.Errorf("another architecture's call gives %#x, want kill", got)
		}
	}
}

func TestBrokerFilter(t *testing.T) {
	for _, c := range []struct {
		name   string
		number uint32
		args   []uint64
		want   uint32
	}{
		{"connect", unix.SYS_CONNECT, nil, notify},
		{"bind", unix.SYS_BIND, nil, allow},
		{"unix stream", unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}, allow},
		{"unix seqpacket", unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_SEQPACKET}, allow},
		{"unix datagram", unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_DGRAM | unix.SOCK_NONBLOCK}, eperm},
		{"unix datagram pair", unix.SYS_SOCKETPAIR, []uint64{unix.AF_UNIX, unix.SOCK_DGRAM}, eperm},
		{"udp", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_DGRAM}, allow},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := decide(t, guest.BrokerFilter(), guest.AuditArch, c.number, c.args...); got != c.want {
				t.Errorf("brokerFilter(%d, %#x) = %#x, want %#x", c.number, c.args, got, c.want)
			}
		})
	}
}
