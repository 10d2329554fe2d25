package main_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScript runs testdata/script: the specification of the command line. What
// these scripts know beyond testscript's own commands:
//
//	node [ARG...]      start creto serve in the background, with data in $DATA,
//	                   wait until it is ready; sets CONSOLE, LISTEN, ROOT, LOGIN
//	node-stop          SIGTERM, which must end it cleanly
//	node-kill          kill -9
//	upstream           start a shop and a model; sets UPSTREAM to host:port
//	until REGEXP CMD   repeat CMD until its output matches
//	let NAME REGEXP    set NAME to what the group in REGEXP matches in the last
//	                   output
//	signal SIG         send SIG to the newest background command
//	flip FILE          change one bit in the middle of FILE
//	[sandbox]          whether a sandbox can be built here
func TestScript(t *testing.T) {
	if err := sandboxed(); err != nil && os.Getenv(requireEnv) == "1" {
		t.Fatalf("no sandbox works here: %v", err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		UpdateScripts:       os.Getenv("UPDATE") == "1",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			for _, entry := range environment(filepath.Join(e.WorkDir, "home")) {
				name, value, _ := strings.Cut(entry, "=")
				e.Setenv(name, value)
			}
			// The default directory, so that no command needs --data.
			e.Setenv("DATA", filepath.Join(e.WorkDir, "home", "data", "creto"))
			return os.MkdirAll(filepath.Join(e.WorkDir, "home"), 0o755)
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "sandbox":
				return sandboxed() == nil, nil
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"node": scriptNode, "node-stop": scriptNodeStop, "node-kill": scriptNodeKill, "upstream": scriptUpstream,
			"until": scriptUntil, "let": scriptLet, "signal": scriptSignal, "flip": scriptFlip, "witness": scriptWitness, "damage": scriptDamage,
		},
	})
}

// scriptServers holds the server of each script, by its directory.
var scriptServers sync.Map

func scriptNode(ts *testscript.TestScript, _ bool, args []string) {
	s, err := startServer(scriptEnv(ts), ts.MkAbs("."), args...)
	ts.Check(err)
	scriptServers.Store(ts.Getenv("WORK"), s)
	ts.Defer(func() {
		if s.cmd.ProcessState == nil {
			ts.Check(s.stop())
		}
	})
	for name, value := range map[string]string{"CONSOLE": s.Console, "LISTEN": s.Listen, "ROOT": s.Root, "LOGIN": s.Login} {
		ts.Setenv(name, value)
	}
}

func scriptServer(ts *testscript.TestScript) *server {
	s, ok := scriptServers.Load(ts.Getenv("WORK"))
	if !ok {
		ts.Fatalf("no node was started")
	}
	return s.(*server)
}

func scriptNodeStop(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(scriptServer(ts).stop())
}

func scriptNodeKill(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(scriptServer(ts).kill())
}

// scriptEnv is the environment of a script that servers get.
func scriptEnv(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "XDG_DATA_HOME", "TMPDIR", "LANG", "UPSTREAM", "WITNESS", "WITNESS_KEY", "HEADS"} {
		env = append(env, name+"="+ts.Getenv(name))
	}
	return env
}

// scriptDamage flips a bit of a record in the node's database.
func scriptDamage(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: damage INDEX")
	}
	d, err := sql.Open("sqlite", filepath.Join(ts.Getenv("XDG_DATA_HOME"), "creto", "creto.db"))
	ts.Check(err)
	var body []byte
	ts.Check(d.QueryRow("SELECT body FROM audit_record WHERE leaf = $1", args[0]).Scan(&body))
	body[len(body)/2] ^= 1
	_, err = d.Exec("UPDATE audit_record SET body = $1 WHERE leaf = $2", body, args[0])
	ts.Check(errors.Join(err, d.Close()))
}

// scriptWitness starts a witness of the logs with these keys, in the directory
// that comes first.
func scriptWitness(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: witness DIR VKEY...")
	}
	line := []string{"--json", "--data", args[0], "witness", "serve", "--listen", "localhost:0"}
	for _, key := range args[1:] {
		line = append(line, "--log", key)
	}
	c := exec.Command(filepath.Join(bin, "creto"), line...)
	c.Env, c.Dir = scriptEnv(ts), ts.MkAbs(".")
	out, err := c.StdoutPipe()
	ts.Check(err)
	ts.Check(c.Start())
	ts.Defer(func() {
		ts.Check(c.Process.Signal(syscall.SIGTERM))
		ts.Check(c.Wait())
	})
	var said struct {
		Listen string `json:"listen"`
		VKey   string `json:"vkey"`
	}
	ts.Check(json.NewDecoder(out).Decode(&said))
	ts.Setenv("WITNESS", "http://"+said.Listen)
	ts.Setenv("WITNESS_KEY", said.VKey)
}

func scriptUpstream(ts *testscript.TestScript, _ bool, _ []string) {
	u := newUpstream()
	ts.Defer(u.Close)
	ts.Setenv("UPSTREAM", u.address())
}

func scriptUntil(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until REGEXP CMD [ARG...]")
	}
	want, err := regexp.Compile(args[0])
	ts.Check(err)
	var out []byte
	began := time.Now()
	for tick := time.NewTicker(50 * time.Millisecond); !want.Match(out); <-tick.C {
		if time.Since(began) > patience {
			ts.Fatalf("%v does not print %s, but: %s", args[1:], args[0], out)
		}
		cmd := exec.Command("/usr/bin/env", args[1:]...)
		cmd.Env, cmd.Dir = scriptEnv(ts), ts.MkAbs(".")
		out, _ = cmd.CombinedOutput() // it is tried again
	}
	_, _ = ts.Stdout().Write(out)
}

func scriptLet(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: let NAME REGEXP")
	}
	want, err := regexp.Compile(args[1])
	ts.Check(err)
	match := want.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(match) < 2 {
		ts.Fatalf("no match of %s in: %s", args[1], ts.ReadFile("stdout"))
	}
	ts.Setenv(args[0], match[1])
}

func scriptSignal(ts *testscript.TestScript, _ bool, args []string) {
	signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL}
	running := ts.BackgroundCmds()
	if len(args) != 1 || signals[args[0]] == 0 || len(running) == 0 {
		ts.Fatalf("usage: signal TERM|INT|KILL, with a command in the background")
	}
	ts.Check(running[len(running)-1].Process.Signal(signals[args[0]]))
}

func scriptFlip(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	data, err := os.ReadFile(path)
	ts.Check(err)
	data[len(data)/2] ^= 1
	ts.Check(os.WriteFile(path, data, 0o600))
}
