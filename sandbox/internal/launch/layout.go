package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"creto.dev/sandbox"
	"creto.dev/sandbox/guest"
)

// tree lays out the sandbox's file system for a resolved spec.
func tree(spec sandbox.Spec) guest.Tree {
	t := guest.Tree{
		Links: map[string]string{}, Files: files(spec.ID), Gateway: spec.GatewayDir, DiskBytes: spec.Limits.DiskBytes,
		Write: spec.Write, Overlay: spec.Dir, ReadOnly: []string{"/usr"},
	}
	for _, path := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		addHost(&t, path)
	}
	for _, path := range hostEtc() {
		addHost(&t, path)
	}
	for _, dir := range spec.Write {
		if below(spec.Dir, dir) {
			t.Overlay = "" // kept as part of dir
		}
	}
	if spec.DataDir != "" && below(spec.DataDir, spec.Dir) {
		t.Masked = []string{spec.DataDir}
	}
	return t
}

// hostEtc lists what is shown of the host's /etc: what the dynamic linker,
// certificates, time zones and Debian's Java and Python need, and public
// tables. Nothing of it holds a secret.
func hostEtc() []string {
	paths := []string{
		"/etc/alternatives", "/etc/debian_version", "/etc/fonts", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
		"/etc/localtime", "/etc/mime.types", "/etc/os-release", "/etc/protocols", "/etc/services",
		"/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/timezone",
	}
	for _, pattern := range []string{"/etc/java-*-openjdk", "/etc/python3*"} {
		found, _ := filepath.Glob(pattern) // the pattern is well formed
		paths = append(paths, found...)
	}
	return paths
}

// addHost shows path as it is on the host: a link as a link, if it leads into
// /usr, everything else read-only, and nothing if it is absent.
func addHost(t *guest.Tree, path string) {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
	case info.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(path)
		real, realErr := filepath.EvalSymlinks(path)
		if err == nil && realErr == nil && below(real, "/usr") {
			t.Links[path] = target
		}
	case info.IsDir() || info.Mode().IsRegular():
		t.ReadOnly = append(t.ReadOnly, path)
	}
}

// files returns the synthesised part of /etc. The command has the caller's
// user id, so that its own files stay its own, under a name that tells nothing.
func files(hostname string) map[string]string {
	uid, gid := os.Getuid(), os.Getgid()
	passwd, group := "root:x:0:0:root:/:/usr/sbin/nologin\n", "root:x:0:\n"
	if uid == 0 {
		passwd = "root:x:0:0:root:" + guest.HomePath + ":/bin/sh\n"
	} else {
		passwd += fmt.Sprintf("agent:x:%d:%d:agent:%s:/bin/sh\n", uid, gid, guest.HomePath)
	}
	if gid != 0 {
		group += fmt.Sprintf("agent:x:%d:\n", gid)
	}
	const nobody = 65534
	if uid != nobody {
		passwd += "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
	}
	if gid != nobody {
		group += "nogroup:x:65534:\n"
	}
	return map[string]string{
		"/etc/passwd":   passwd,
		"/etc/group":    group,
		"/etc/hostname": hostname + "\n",
		"/etc/hosts":    "127.0.0.1\tlocalhost " + hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		// No name service: names are resolved by the gateway.
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\nnetworks: files\nprotocols: files\nservices: files\n",
		"/etc/resolv.conf":   "# No name service in a sandbox: HTTP_PROXY and HTTPS_PROXY lead to the gateway.\n",
	}
}

// below reports whether path is dir or lies below it.
func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
