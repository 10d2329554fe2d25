package guest

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data, seccomp(2). Both architectures are
// little-endian: the low half of an argument comes first.
const (
	offNumber   = 0
	offArch     = 4
	offArgument = 16
)

// denied are the system calls refused with EPERM: those that change what every
// process of the host shares, that make or enter namespaces and mounts, or
// that open large, seldom used parts of the kernel. The base is Docker's
// default profile (moby, profiles/seccomp) for a process without capabilities.
func denied() []uintptr {
	return append([]uintptr{
		// Mounts, roots and namespaces.
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
		unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
		unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
		// The kernel itself.
		unix.SYS_REBOOT, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
		unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_VHANGUP, unix.SYS_NFSSERVCTL, unix.SYS_LOOKUP_DCOOKIE,
		// Shared clocks and names.
		unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
		// Large or often broken parts.
		unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
		unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
		unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_KCMP,
	}, deniedHere()...)
}

// absent are refused with ENOSYS, at which libraries fall back: clone3, whose
// flags a filter cannot read, and io_uring, whose requests pass no filter.
func absent() []uintptr {
	return []uintptr{unix.SYS_CLONE3, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER}
}

// newNamespaces are the flags of clone(2) that make namespaces.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME

// tiocLinux is TIOCLINUX, ioctl_console(2), which like TIOCSTI can type into
// the terminal that the sandbox shares with its caller.
const tiocLinux = 0x541c

var (
	allow = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	kill  = bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}
)

func errno(e unix.Errno) bpf.RetConstant {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(e)}
}

func argument(n uint32) bpf.LoadAbsolute { return bpf.LoadAbsolute{Off: offArgument + 8*n, Size: 4} }

// check returns body for the system call number, which is loaded, and goes on
// behind it for others. body ends in a return.
func check(number uintptr, body ...bpf.Instruction) []bpf.Instruction {
	return append([]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(number), SkipFalse: uint8(len(body))}}, body...)
}

// prologue kills calls of another architecture, whose numbers mean other
// things, and loads the call's number.
func prologue() []bpf.Instruction {
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		kill,
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
	}
	if runtime.GOARCH == "amd64" {
		// The x32 numbers, a second door to the same calls.
		program = append(program, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: 0x40000000, SkipFalse: 1}, kill)
	}
	return program
}

// filter is the program for every process of the sandbox, the first included.
func filter() []bpf.Instruction {
	program := prologue()
	for _, number := range denied() {
		program = append(program, check(number, errno(unix.EPERM))...)
	}
	for _, number := range absent() {
		program = append(program, check(number, errno(unix.ENOSYS))...)
	}
	program = append(program, check(unix.SYS_CLONE,
		argument(0),
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: newNamespaces, SkipFalse: 1},
		errno(unix.EPERM),
		allow)...)
	// The kernel reads 32 bits of an ioctl's number.
	program = append(program, check(unix.SYS_IOCTL,
		argument(1),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.TIOCSTI, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: tiocLinux, SkipFalse: 1},
		errno(unix.EPERM),
		allow)...)
	// Of the socket families only the usual ones, and of netlink only routes,
	// which getifaddrs reads.
	program = append(program, check(unix.SYS_SOCKET,
		argument(0),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_UNIX, SkipTrue: 6},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET, SkipTrue: 5},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET6, SkipTrue: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_NETLINK, SkipFalse: 2},
		argument(2),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.NETLINK_ROUTE, SkipTrue: 1},
		errno(unix.EAFNOSUPPORT),
		allow)...)
	program = append(program, check(unix.SYS_PERSONALITY,
		argument(0),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0xffffffff, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: addrNoRandomize, SkipTrue: 1},
		errno(unix.EPERM),
		allow)...)
	return append(program, allow)
}

// addrNoRandomize is ADDR_NO_RANDOMIZE, personality(2), which debuggers set.
const addrNoRandomize = 0x0040000

// install loads program for the calling thread, or with SECCOMP_FILTER_FLAG_TSYNC
// for all, and returns what the kernel does: a descriptor if flags ask for one.
func install(program []bpf.Instruction, flags uintptr) (uintptr, error) {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return 0, fmt.Errorf("assemble the system call filter: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	result, _, number := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(code)
	if number != 0 {
		return 0, fmt.Errorf("install the system call filter: %w", number)
	}
	if flags&unix.SECCOMP_FILTER_FLAG_TSYNC != 0 && result != 0 {
		return 0, fmt.Errorf("install the system call filter: thread %d does not follow", result)
	}
	return result, nil
}
