package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tree lists what is readable at the top and in /etc.
func tree() {
	for _, dir := range []string{"/", "/etc", "/etc/ssl", "/run", "/run/creto", "/sys"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			fail("%v", err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch {
			case e.Type()&fs.ModeSymlink != 0:
				fmt.Println(path + "@")
			case e.IsDir():
				fmt.Println(path + "/")
			default:
				fmt.Println(path)
			}
		}
	}
}

func dial(network, address string) {
	conn, err := net.Dial(network, address)
	if err != nil {
		fmt.Println("no:", err)
		return
	}
	conn.Close()
	fmt.Println("yes")
}

// request sends one request as an ordinary program does, through the proxy of
// its environment, and copies the answer's body as it comes.
func request(method, url, size string) {
	n, err := strconv.Atoi(size)
	if err != nil {
		fail("%v", err)
	}
	r, err := http.NewRequest(method, url, bytes.NewReader(bytes.Repeat([]byte("x"), n)))
	if err != nil {
		fail("%v", err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		fail("%v", err)
	}
	defer response.Body.Close()
	fmt.Println(response.StatusCode)
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		fmt.Println("cut:", err)
	}
}

// connect opens a tunnel to address, says hello, half-closes and copies what
// comes back.
func connect(address string) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(os.Getenv("HTTPS_PROXY"), "http://"))
	if err != nil {
		fail("%v", err)
	}
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", address, address)
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, &http.Request{Method: http.MethodConnect})
	if err != nil {
		fail("%v", err)
	}
	fmt.Println(response.StatusCode)
	if response.StatusCode != http.StatusOK {
		_, _ = io.Copy(os.Stdout, response.Body)
		return
	}
	fmt.Fprint(conn, "hello")
	_ = conn.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(os.Stdout, reader)
}

// syscalls tries what must not work and prints what did.
func syscalls() {
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		fail("%v", err)
	}
	try := func(name string, err error) {
		if err == nil {
			fmt.Println("worked:", name)
		}
	}
	raw := func(trap, a1, a2, a3 uintptr) error {
		if _, _, e := syscall.RawSyscall(trap, a1, a2, a3); e != 0 {
			return e
		}
		return nil
	}
	cstring := func(s string) uintptr {
		p, _ := unix.BytePtrFromString(s) // no zero byte
		return uintptr(unsafe.Pointer(p))
	}
	try("mount tmpfs", unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	try("mount proc", unix.Mount("proc", dir, "proc", 0, ""))
	try("bind mount", unix.Mount("/", dir, "", unix.MS_BIND, ""))
	try("remount /usr", unix.Mount("", "/usr", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	try("umount /usr", unix.Unmount("/usr", unix.MNT_DETACH))
	try("pivot_root", unix.PivotRoot(dir, dir))
	try("chroot", unix.Chroot(dir))
	try("unshare user", unix.Unshare(unix.CLONE_NEWUSER))
	try("unshare mount", unix.Unshare(unix.CLONE_NEWNS))
	try("unshare net", unix.Unshare(unix.CLONE_NEWNET))
	cmd := exec.Command("/proc/self/exe", "status")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
	try("clone user", cmd.Run())
	if fd, err := unix.Open("/proc/1/ns/mnt", unix.O_RDONLY, 0); err == nil {
		try("setns", unix.Setns(fd, 0))
	}
	try("trace 1", unix.PtraceAttach(1))
	if _, err := os.ReadFile("/proc/1/environ"); err == nil {
		fmt.Println("worked: read /proc/1/environ")
	}
	try("setuid", raw(unix.SYS_SETUID, 12345, 0, 0))
	try("sethostname", unix.Sethostname([]byte("evil")))
	try("mknod", unix.Mknod(filepath.Join(dir, "sda"), unix.S_IFBLK|0o600, 8<<8))
	try("keyctl", raw(unix.SYS_KEYCTL, 0, ^uintptr(2), 0)) // the session keyring
	try("add_key", raw(unix.SYS_ADD_KEY, cstring("user"), cstring("x"), cstring("y")))
	try("bpf", raw(unix.SYS_BPF, 0, 0, 0))
	try("io_uring", raw(unix.SYS_IO_URING_SETUP, 1, cstring(strings.Repeat("\x01", 0)+strings.Repeat("\x01", 120)), 0))
	try("userfaultfd", raw(unix.SYS_USERFAULTFD, 0, 0, 0))
	try("perf", raw(unix.SYS_PERF_EVENT_OPEN, cstring(strings.Repeat("\x01", 112)), 0, 0))
	try("reboot", unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF))
	try("settimeofday", unix.Settimeofday(&unix.Timeval{Sec: 1}))
	try("vsock", socket(40, unix.SOCK_STREAM, 0))
	try("raw socket", socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP))
	try("packet socket", socket(unix.AF_PACKET, unix.SOCK_RAW, 0))
	try("write /proc/sys", openForWriting("/proc/sys/kernel/core_pattern"))
	try("write sysrq", os.WriteFile("/proc/sysrq-trigger", []byte("h"), 0o600)) // h prints a help text to the kernel's log
	try("write pressure", openForWriting("/proc/pressure/cpu"))
	for _, path := range []string{"/x", "/usr/x", "/etc/x", "/dev/x", "/run/x", "/run/creto/x", "/sys/x", "/proc/x", "/usr/bin/x"} {
		try("create "+path, os.WriteFile(path, nil, 0o600))
	}
	try("change /etc/passwd", os.WriteFile("/etc/passwd", nil, 0o600))
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/kallsyms"} {
		if data, err := os.ReadFile(path); err == nil && len(data) > 0 {
			fmt.Println("worked: read", path)
		}
	}
	fmt.Println("done")
}

func socket(family, kind, protocol int) error {
	fd, err := unix.Socket(family, kind, protocol)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// status prints the process's capabilities and flags.
func status() {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fail("%v", err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") {
			fmt.Print(line)
		}
	}
}

// spawn starts processes until n run or no more can be had.
func spawn(count string) {
	n, err := strconv.Atoi(count)
	if err != nil {
		fail("%v", err)
	}
	running := 0
	for range n {
		// sleep, since a Go program is a handful of threads.
		cmd := exec.Command("sleep", "600")
		if err := cmd.Start(); err != nil {
			if !errors.Is(err, syscall.EAGAIN) {
				fmt.Println("odd:", err)
			}
			break
		}
		running++
	}
	fmt.Println(running)
}

// talk is a Unix socket between two processes of the sandbox's own.
func talk() {
	path := filepath.Join(os.TempDir(), "own.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		fail("%v", err)
	}
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		fmt.Fprint(conn, "own")
		conn.Close()
	}()
	conn, err := net.Dial("unix", path)
	if err != nil {
		fail("%v", err)
	}
	_, _ = io.Copy(os.Stdout, conn)
}

// signals prints the signals that come, and ends at the second.
func signals() {
	c := make(chan os.Signal, 4)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	fmt.Println("ready")
	fmt.Println(<-c)
	if len(os.Args) > 2 && os.Args[2] == "stubborn" {
		select {}
	}
	os.Exit(7)
}

// openForWriting opens a file of the kernel's and writes nothing: where a wall
// is missing, the test must not change the host.
func openForWriting(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}
