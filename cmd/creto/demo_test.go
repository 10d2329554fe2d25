package main_test

import (
	"bufio"
	"encoding/json"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// demo is a creto demo --json under way.
type demo struct {
	*process
	steps *bufio.Scanner
	texts []string
}

func startDemo(t *testing.T, args ...string) *demo {
	t.Helper()
	needSandbox(t)
	if err := buildExample(); err != nil {
		skip(t, "the example cannot be built; run: make build (%v)", err)
	}
	example, err := filepath.Abs(filepath.Join("..", "..", "examples", "shop-bot"))
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "creto"),
		append([]string{"demo", "--json", "--example", example, "--data", filepath.Join(home, "demo")}, args...)...)
	// Another node in the environment is none of the demo's business.
	cmd.Env = append(environment(home), "CRETO_ADDR=http://localhost:1", "CRETO_TOKEN=none")
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	d := &demo{process: &process{TB: t, Cmd: cmd, done: make(chan struct{})}}
	cmd.Stdout, cmd.Stderr = write, &d.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	go func() {
		d.err = cmd.Wait()
		close(d.done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-d.done
		_ = read.Close()
	})
	d.steps = bufio.NewScanner(read)
	return d
}

// until reads steps up to one that matches, and returns what its group matched.
// "" reads to the end.
func (d *demo) until(pattern string) string {
	d.Helper()
	want := regexp.MustCompile(pattern)
	for d.steps.Scan() {
		var step struct{ Text string }
		text, ok := strings.CutPrefix(strings.TrimSpace(d.steps.Text()), `"text": `)
		if !ok {
			continue
		}
		if err := json.Unmarshal([]byte(`{"text":`+text+`}`), &step); err != nil {
			d.Fatalf("%s: %v", d.steps.Text(), err)
		}
		d.texts = append(d.texts, step.Text)
		if m := want.FindStringSubmatch(step.Text); pattern != "" && m != nil {
			return m[len(m)-1]
		}
	}
	if pattern != "" {
		d.Fatalf("no step says %s; there are:\n%s\n%s", pattern, strings.Join(d.texts, "\n"), d.out.String())
	}
	return ""
}

// finish reads the rest and looks for what the demo is there to show.
func (d *demo) finish(decided string) {
	d.Helper()
	d.until("")
	d.wait()
	all := strings.Join(d.texts, "\n")
	for _, want := range []string{
		`^the shop answers at http://\S+; the model is a stub, not a language model`,
		`^node ready after \d+ ms`,
		`^alice logged in with a one-time login and made a passkey: one in software`,
		`shop-bot acts on behalf of alice: her passkey signed the delegation \(confirmed\); refunds need the consent of group finance`,
		`^sandbox by (gvisor|namespaces), its program running after \d+ ms; a direct connection out of it: .*unreachable`,
		`^the agent waits: shop-bot on behalf of alice asks group finance .* bound to sha3-256:`,
		`^kill -9 of the node while it waits; ready again after \d+ ms, and the request waits still$`,
		decided,
		`^the agent is done; the shop made 1 refund: .*"amount":49.90`,
		`^[1-9]\d* model calls through the gateway, [1-9]\d* prompt and [1-9]\d* completion tokens as the stub counted them$`,
		`^the injected action was denied and recorded: Url::http://shop.test/customers/export at index \d+; 0 requests reached the thief$`,
		`^the same refund again asked again, .*; denied`,
		`^the refund with another amount asked again, .*; denied`,
		`^offline, each of the agent's records leads .*: alice, by passkey \(localhost\)$`,
		`^the second verifier, in JavaScript( and sharing no code with this one, refuses the flipped byte too \(record .*\), and says: verify \S+ OK: \d+ records of \d+ in creto.local/log, root trusted|, did not run: there is no node)`,
		`^node stopped; one byte flipped in the refund's record at index \d+: creto: verify .* FAILED: record`,
	} {
		if !regexp.MustCompile("(?m)" + want).MatchString(all) {
			d.Errorf("no step says %s", want)
		}
	}
	if last := d.texts[len(d.texts)-1]; !regexp.MustCompile(`^verify \S+ OK: (\d+) records of \d+ in creto.local/log, root trusted$`).MatchString(last) {
		d.Errorf("the last step is %q", last)
	}
	if d.Failed() {
		d.Log(all)
	}
}

func TestDemo(t *testing.T) {
	d := startDemo(t, "--approve=auto")
	d.finish(`^consumed by demo-approver|^approved by demo-approver: no human decided, because of --approve=auto, and the receipt says so$`)
}

// TestDemoConsole is bob, with a browser.
func TestDemoConsole(t *testing.T) {
	d := startDemo(t, "--approve=console")
	link := d.until(`(http://localhost:\d+/console/login\?code=\S+)`)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar}
	fetch := func(response *http.Response, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v\n%s", response.Request.URL, response.Status, err, body)
		}
		return string(body)
	}
	field := func(page, name string) string {
		t.Helper()
		m := regexp.MustCompile(`name="` + name + `"[^>]*value="([^"]*)"`).FindStringSubmatch(page)
		if m == nil {
			t.Fatalf("the page has no field %q:\n%s", name, page)
		}
		return html.UnescapeString(m[1])
	}
	base, _, _ := strings.Cut(link, "/console/")

	// Following the link logs nobody in: a button does.
	page := fetch(browser.Get(link))
	fetch(browser.PostForm(base+"/console/login", url.Values{"code": {field(page, "code")}}))
	page = fetch(browser.Get(base + "/console"))
	m := regexp.MustCompile(`href="(/console/approvals/[0-9a-f-]{36})"`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("nothing waits in the console:\n%s", page)
	}
	request := base + m[1]
	page = fetch(browser.Get(request))
	for _, want := range []string{"shop-bot", "alice", "finance", "http://shop.test/refunds", "49.90"} {
		if !strings.Contains(html.UnescapeString(page), want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	form := url.Values{"csrf": {field(page, "csrf")}, "digest": {field(page, "digest")}, "decision": {"approve"}, "reason": {"photo seen"}}

	// What a browser shows is what was sent: no script takes part.
	if chromium, err := exec.LookPath("chromium"); err == nil {
		t.Run("chromium", func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), chromium, "--headless", "--no-sandbox", "--disable-gpu",
				"--user-data-dir="+t.TempDir(), "--dump-dom", base+"/console/login?code=none").Output()
			if err != nil || !strings.Contains(string(out), "<form") {
				t.Errorf("chromium shows %q, %v", out, err)
			}
		})
	}

	// A form from elsewhere, and one for another request, decide nothing.
	for name, value := range map[string]string{"csrf": "forged", "digest": "sha3-256:" + strings.Repeat("1", 64), "decision": "maybe"} {
		bad := url.Values{}
		for k, v := range form {
			bad[k] = v
		}
		bad.Set(name, value)
		response, err := browser.PostForm(request, bad)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode < http.StatusBadRequest {
			t.Errorf("a form with another %s is answered %s", name, response.Status)
		}
	}
	if page = fetch(browser.PostForm(request, form)); !strings.Contains(page, "bob") {
		t.Errorf("the page does not say who decided:\n%s", page)
	}
	// The code is spent.
	response, err := http.PostForm(base+"/console/login", url.Values{"code": {strings.TrimPrefix(link, base+"/console/login?code=")}})
	if err == nil {
		_ = response.Body.Close()
		if response.StatusCode != http.StatusUnauthorized {
			t.Errorf("the second use of a login is answered %s", response.Status)
		}
	}
	d.finish(`by bob in the console$`)
}

// TestDemoRefuses a directory that holds a node's data, and a way that is none.
func TestDemoRefuses(t *testing.T) {
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "creto.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, want string
		args       []string
	}{
		{"used directory", "holds a node's data already; give the demo an empty --data directory", []string{"--data", home}},
		{"unknown approver", "--approve=nobody: choose auto or console", []string{"--approve=nobody"}},
		{"no example", "--example", []string{"--data", filepath.Join(home, "new"), "--example", home}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "no example" {
				if err := buildExample(); err != nil {
					skip(t, "the example cannot be built; run: make build (%v)", err)
				}
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "creto"), append([]string{"demo"}, test.args...)...)
			cmd.Env = environment(home)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), test.want) || strings.Count(string(out), "\n") != 1 {
				t.Errorf("creto demo %v = %v, %q; want one line with %q", test.args, err, out, test.want)
			}
		})
	}
}
